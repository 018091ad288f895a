"""Judgements as JSON has them, put into a dataset."""

from d3po_core.candidates.judgement import Judgement


def judge(dataset, set_id, said, *given, **named):
    """Dataset.judge, of a mapping or None."""
    row = dataset.find(set_id)
    judgement = None if said is None else Judgement.parse(said, row.candidates if row else 2)
    return dataset.judge(set_id, judgement, *given, **named)
