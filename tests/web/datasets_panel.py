"""The sidebar's datasets as a user meets them: a page object over the tab and the view that it opens."""

from d3po_core.dataset.store import Dataset
from tests.web.picker import Picker

TAB = ".d3po-tab-button, [data-testid='d3po-tab-button']"  # older frontends, newer ones
# seconds from each set's last answer to the next set's pictures
IDLE = "() => performance.getEntriesByName('d3po.idle').map((entry) => entry.duration / 1000)"


class DatasetsPanel(Picker):
    """The tab's half with the datasets, and the picker's view that it opens."""

    ROOT = ".d3po-dialog .d3po-dataset"

    def __init__(self, page, host, dataset):
        super().__init__(page, host, node=None)
        self.dataset, self.panel = dataset, page.locator(".d3po-datasets")
        self.card = self.panel.locator(f".d3po-card[data-name='{dataset}']")

    def drawn(self):
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def shown(self):
        return self.root.locator(".d3po-pane img").count()

    def toggle(self):
        self.page.locator(TAB).click()

    def open(self):
        self.toggle()
        self.page.get_by_role("button", name="Datasets", exact=True).click()
        self.card.wait_for()

    def reads(self, place, *parts):
        self.until(lambda: all(part in place.inner_text() for part in parts))

    @property
    def text(self):
        return self.root.inner_text() if self.root.count() else self.panel.inner_text()

    def act(self, place, name):
        place.locator(f"[data-act='{name}']").click()

    @property
    def judged(self):
        """What counts of what "me" said, by set, oldest set first."""
        folder = self.host.base / "output" / "d3po" / "datasets" / self.dataset
        with Dataset(folder, create=False) as store:
            shown = store.browse("me", order="oldest", limit=100)
        return {each.row.id: [entry.judgement.as_json for entry in each.said] for each in shown}

    def sets_judged(self, count):
        self.until(lambda: sum(map(len, self.judged.values())) == count)
