"""The pack's nodes: thin translations between ComfyUI and d3po_core."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from . import sidebar  # noqa: F401
from .clip_scorers import D3POAestheticScorer, D3POCLIPScorer
from .comparing import D3POCompare, D3POWinRate
from .datasets import D3PODatasetStatistics, D3POLoadPreferences, D3POLoadSets, D3POSaveToDataset
from .doodl import D3PODOODL
from .exchange import D3POEncodePairs, D3POExportPreferences, D3POImportPreferences
from .implicit import D3POImplicitAccuracy, D3POImplicitPreference, D3POImplicitReward
from .judging import D3POObjectivePreference
from .learned_scorers import D3POImplicitScorer, D3POTasteScorer
from .library import D3POLoadRun, D3POSaveRun
from .lora_export import D3POSaveLoRA
from .manage_runs import D3POManageRuns
from .merging import D3POMergeDatasets
from .model_scorers import D3POImageRewardScorer, D3POONNXScorer
from .picking import D3POPairPreference
from .plotting import D3POPlot
from .rates import D3PORate
from .reno import D3PORENO
from .sampling import D3POKSampler, D3POPrompts
from .sampling_custom import D3POSamplerCustom
from .scorers import D3POObjectiveScorer, D3PORuleScorer
from .scores import D3POScorePreference
from .search import D3POBestOfN, D3PONoiseSearch
from .taste import D3POTastePreference
from .train.rewards import D3PORewardTrainStep
from .train.settings import D3POTrainSettings
from .train.step import D3POTrainStep


class D3POExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            D3POPrompts,
            D3POKSampler,
            D3POSamplerCustom,
            D3POPairPreference,
            D3POObjectivePreference,
            D3POScorePreference,
            D3POObjectiveScorer,
            D3POCLIPScorer,
            D3POAestheticScorer,
            D3POImageRewardScorer,
            D3POONNXScorer,
            D3PORuleScorer,
            D3POTastePreference,
            D3POTrainStep,
            D3POTrainSettings,
            D3PORewardTrainStep,
            D3POLoadRun,
            D3POSaveRun,
            D3POSaveLoRA,
            D3POManageRuns,
            D3POPlot,
            D3POSaveToDataset,
            D3POLoadSets,
            D3POLoadPreferences,
            D3PODatasetStatistics,
            D3POMergeDatasets,
            D3POImportPreferences,
            D3POExportPreferences,
            D3POEncodePairs,
            D3POImplicitReward,
            D3POImplicitPreference,
            D3POImplicitAccuracy,
            D3POCompare,
            D3POWinRate,
            D3PORate,
            D3POBestOfN,
            D3PONoiseSearch,
            D3PODOODL,
            D3PORENO,
            D3POTasteScorer,
            D3POImplicitScorer,
        ]
