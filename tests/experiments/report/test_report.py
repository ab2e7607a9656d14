"""The report says what the files say: means and deviations, pictures with words, nothing from elsewhere."""

import json
import re
import statistics
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from experiments.errors import InputError
from experiments.report import collect, pictures, tables, write_html, write_markdown
from experiments.report.collect import Row, Section, Stat
from experiments.report.pictures import overview, slices, sweeps

AUC = {("Full", None): [0.9, 0.91], ("HashingTrick", None): [0.8, 0.7]}
AUC |= {("UnifiedEmbedding", dim): [0.8 + dim / 100, 0.81 + dim / 100] for dim in (2, 4, 8)}


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for (method, dim), values in AUC.items():
        for seed, auc in enumerate(values):
            options = {} if dim is None else {"chunk_dim": dim}
            label = method if dim is None else f"{method}(chunk_dim={dim})"
            write(folder, method, label, options, 4000 if method == "Full" else 400, seed, auc)
    (folder / "toy" / "infeasible").mkdir()
    said = {"experiment": "toy", "dataset": "clicks", "model": "DCN", "method": "HashingTrick", "label": "HashingTrick"}
    noted = {**said, "budget": {"share": 0.001}, "seed": 0, "reason": "<too small>"}
    for seed in (0, 1):
        (folder / "toy" / "infeasible" / f"tiny-seed{seed}.json").write_text(json.dumps({**noted, "seed": seed}))
    return folder


def write(folder, method, label, options, nbytes, seed, auc, experiment="toy", dataset="clicks", **other):
    values = {
        "experiment": experiment,
        "dataset": dataset,
        "model": "DCN",
        "method": method,
        "label": label,
        "budget": {} if method == "Full" else {"share": 0.1},
        "seed": seed,
        "rows": nbytes // 4,
        "nbytes": nbytes,
        "full_nbytes": 4000,
        "seconds": 1.0,
        "metrics": {
            "test/auc": auc,
            "test/logloss": 1 - auc,
            "valid/auc": 0.1,
            "test/auc/rare": auc / 2,
            "test/rows/rare": 5,
        },
        "config": {"model": {"embedding_dim": 8}, "method": {"method": method, "options": options}},
    }
    path = folder / experiment / f"{dataset}-{other.get('model', 'DCN')}-{label}-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**values, **other}))


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.cells, self.images, self.links, self.tags, self.text = [], [], [], set(), text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        if tag == "img":
            self.images.append(attrs)
        self.links += [attrs[name] for name in ("src", "href") if name in attrs]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data.strip()


def test_means_and_deviations_are_over_seeds(results):
    (section,) = collect(results)[0].sections
    rows = {row.label: row for row in section.rows}
    stat = rows["HashingTrick"].metrics["auc"]
    assert stat.mean == pytest.approx(statistics.fmean([0.8, 0.7]))
    assert stat.std == pytest.approx(statistics.stdev([0.8, 0.7]))
    assert str(stat) == "0.7500 ± 0.0707"
    assert rows["HashingTrick"].share == 0.1
    assert section.rows[0].label == "Full"
    assert section.metrics == ["auc", "logloss"]
    assert section.sliced == ["auc/rare"]
    assert section.missing == [("HashingTrick", "0.001 of the bytes", "<too small>")]


def test_the_page_needs_nothing_else(results, tmp_path):
    page = Page(write_html(results, tmp_path / "report" / "index.html").read_text())
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not page.tags & {"script", "link", "iframe"}
    assert "url(" not in page.text
    assert 'name="viewport"' in page.text
    assert "0.7500 ± 0.0707" in page.cells
    assert "&lt;too small&gt;" in page.text
    assert len(page.images) == 3
    for image in page.images:
        assert image["src"].startswith("data:image/svg+xml;base64,")
        assert "HashingTrick" in image["alt"] or "chunks" in image["alt"]


def test_pictures_are_svg_and_the_same_every_time(results):
    (experiment,) = collect(results)
    first, again = ([overview(experiment), *sweeps(experiment.sections[0])] for _ in range(2))
    assert [picture.svg for picture in first] == [picture.svg for picture in again]
    by_bytes, by_chunks = first
    for picture in first:
        assert ElementTree.fromstring(picture.svg).tag.endswith("svg")
    for label in ("Full", "HashingTrick", "UnifiedEmbedding(chunk_dim=2)"):
        assert label in by_bytes.svg
    # 8 / chunk_dim chunks: the values at 1, 2 and 4 chunks.
    assert "1 0.8850, 2 0.8450, 4 0.8250" in by_chunks.alt
    assert "chunks per feature" in by_chunks.svg


def test_slices_are_in_the_order_of_their_numbers():
    names = ["recall@20/first-10", "recall@20/first-3", "recall@10/first-3", "auc/rare"]
    row = Row("GraphHash", "GraphHash", "", 1, 2, 3, 1, 1.0, 1.0, {}, dict.fromkeys(names, Stat.of([0.5])))
    assert Section("cold", "beauty", "MF", rows=[row]).sliced == [names[3], names[2], names[1], names[0]]


def test_slices_show_each_method_once(results):
    """At the size that most have; a method with one size at that."""
    write(results, "HashingTrick", "HashingTrick", {}, 40, 7, 0.7, budget={"share": 0.01})
    (section,) = collect(results)[0].sections
    picture = slices(section)
    assert "UnifiedEmbedding(chunk_dim=8): rare 0.443" in picture.alt  # (.88 + .89) / 4
    assert picture.alt.count("HashingTrick: rare 0.375") == picture.alt.count("HashingTrick: rare") == 1
    assert "Full: rare 0.45" in picture.alt
    assert ElementTree.fromstring(picture.svg).tag.endswith("svg")


def test_one_experiment_of_several(results, tmp_path):
    write(results, "Full", "Full", {}, 4000, 0, 0.5, experiment="other")
    assert {experiment.name for experiment in collect(results)} == {"toy", "other"}
    assert [experiment.name for experiment in collect(results, ["other"])] == ["other"]
    with pytest.raises(InputError, match=r"no results of experiment 'third'.*other, toy"):
        collect(results, ["third"])
    with pytest.raises(InputError, match="holds no results"):
        collect(tmp_path / "nowhere")


def test_markdown_links_pictures_that_are_there(results, tmp_path):
    write(results, "Full", "Full", {}, 4000, 0, 0.5, experiment="other")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "export.md").write_text("# written by another command\n")
    folder = write_markdown(results, tmp_path / "docs")
    text = (folder / "toy.md").read_text()
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(links) == 3
    assert all((folder / link).is_file() for link in links)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert any("0.7500 ± 0.0707" in line for line in tables)
    assert {line.count("|") for line in tables} == {7, 5}  # six columns, of cost too, and four of slices
    assert "(toy.md)" in (folder / "index.md").read_text()
    assert "- [export](export.md)\n" in (folder / "index.md").read_text()
    assert "(index.md)" not in (folder / "index.md").read_text()
    write(results, "Full", "Full", {}, 4000, 0, 0.5, experiment="other", dataset="films next")
    write_markdown(results, folder)
    assert not [path for path in folder.iterdir() if " " in path.name]


def test_data_sets_of_one_experiment_are_side_by_side(results, tmp_path):
    write(results, "HashingTrick", "HashingTrick", {}, 400, 0, 0.625, dataset="more")
    (experiment,) = collect(results)
    assert [section.dataset for section in experiment.sections] == ["clicks", "more"]
    table = tables.overview(experiment)
    assert table.header == ["method", "budget", "AUC, clicks", "log-loss, clicks", "AUC, more", "log-loss, more"]
    lines = {line[0]: line[1:] for line in table.lines}
    assert lines["HashingTrick"] == ["0.1 of the bytes", "0.7500 ± 0.0707", "0.2500 ± 0.0707", "0.6250", "0.3750"]
    assert lines["Full"] == ["–", "0.9050 ± 0.0071", "0.0950 ± 0.0071", "–", "–"]
    drawn = overview(experiment).svg
    assert "DCN on clicks" in drawn
    assert "DCN on more" in drawn
    page = Page(write_html(results, tmp_path / "index.html").read_text())
    assert "0.6250" in page.cells
    assert "AUC, more" in (write_markdown(results, tmp_path / "docs") / "toy.md").read_text()


def test_models_that_rank_are_side_by_side(tmp_path):
    for model, recall in (("MF", 0.25), ("LightGCN", 0.5)):
        metrics = {"test/ndcg@20": recall / 2, "test/recall@10": 0.125, "test/recall@20": recall}
        write(tmp_path, "Full", "Full", {}, 4000, 0, 0, experiment="ranked", model=model, metrics=metrics)
    (experiment,) = collect(tmp_path)
    table = tables.overview(experiment)
    assert table.header == [
        *["method", "budget"],
        *(f"{m}@20, {n}" for n in ("LightGCN", "MF") for m in ("Recall", "NDCG")),
    ]
    assert table.lines == [["Full", "–", "0.5000", "0.2500", "0.2500", "0.1250"]]
    details, _ = tables.details(experiment.sections[0])
    assert details.header == ["method", "Recall@20", "to full", "bytes", "share", "NDCG@20", "Recall@10"]
    assert "Recall@20" in overview(experiment).title


def test_next_items_are_judged_by_ndcg_at_ten(tmp_path):
    for model, ndcg in (("SASRec", 0.25), ("GRU4Rec", 0.125)):
        metrics = {"test/ndcg@10": ndcg, "test/recall@10": 0.5, "test/ndcg@50": 0.375, "test/ndcg@10/tail": 0.0625}
        write(tmp_path, "Full", "Full", {}, 4000, 0, 0, experiment="next", model=model, metrics=metrics)
    (experiment,) = collect(tmp_path)
    table = tables.overview(experiment)
    assert table.header == ["method", "budget", "NDCG@10, GRU4Rec", "NDCG@10, SASRec"]
    assert table.lines == [["Full", "–", "0.1250", "0.2500"]]
    details, _, slices = tables.details(experiment.sections[0])
    assert details.header == ["method", "NDCG@10", "to full", "bytes", "share", "NDCG@50", "Recall@10"]
    assert slices.header == ["method", "bytes", "share", "NDCG@10 tail"]


def test_poolings_are_drawn_against_what_they_cost(tmp_path):
    poolings = {
        "average": ("average", {}),
        "SDIM kernel": ("sdim", {"rule": "kernel"}),
        "SDIM kernel m=12": ("sdim", {"rule": "kernel", "num_hashes": 12}),
        "SDIM": ("sdim", {"rule": "l2"}),
    }
    for dataset in ("films like", "films next"):
        for number, (label, (pooling, options)) in enumerate(poolings.items(), 1):
            config = {"behavior": {"pooling": pooling, "options": options}, "method": {"method": "Full", "options": {}}}
            other = {"config": config, "seconds": 60.0 * number, "epochs": 3}
            write(tmp_path, "Full", label, {}, 4000, 0, 0.8, dataset=dataset, **other)
    (experiment,) = collect(tmp_path)
    assert [row.epoch_seconds for row in experiment.sections[0].rows if row.label == "average"] == [20]
    picture = overview(experiment)
    assert picture is not None
    assert (picture.name, picture.title) == ("toy-cost", "AUC against cost")
    assert "films next: " in picture.alt
    legend = set(re.findall(r">(average|SDIM[^<]*)<", picture.svg))
    assert legend == {"average", "SDIM kernel", "SDIM"}  # another number of hashes is the same pooling


def test_models_on_several_data_sets_are_told_apart(tmp_path):
    for model, dataset in (("DLRM", "clicks"), ("DLRM", "more"), ("DCN", "more")):
        write(tmp_path, "Full", "Full", {}, 4000, 0, 0.5, model=model, dataset=dataset)
    table = tables.overview(collect(tmp_path)[0])
    assert {name for name in table.header if "AUC" in name} == {
        "AUC, DLRM on clicks",
        "AUC, DLRM on more",
        "AUC, DCN on more",
    }


def test_lines_of_a_budget_stand_together_the_best_first(tmp_path):
    """With the difference to the full tables, and the best of each column among them; full tables are no candidates."""
    for label, share, auc in (("B", 0.5, 0.7), ("A", 0.1, 0.6), ("A", 0.5, 0.8), ("B", 0.1, 0.65), ("C", 0.5, 0.75)):
        nbytes = int(4000 * share) + ord(label) - 65  # budgets are kept to some bytes
        write(tmp_path, "HashingTrick", label, {}, nbytes, f"0-{share}", auc, budget={"share": share})
    write(tmp_path, "Full", "Full", {}, 4000, 0, 0.9)
    (section,) = collect(tmp_path)[0].sections
    table, cost, sliced = tables.details(section)
    assert table.header == ["method", "AUC", "to full", "bytes", "share", "log-loss"]
    assert [line[:3] for line in table.lines] == [
        ["Full", "0.9000", "–"],
        ["A", "0.8000", "-0.1000"],
        ["C", "0.7500", "-0.1500"],
        ["B", "0.7000", "-0.2000"],
        ["B", "0.6500", "-0.2500"],
        ["A", "0.6000", "-0.3000"],
    ]
    assert table.best == {(1, 1), (1, 5), (4, 1), (4, 5)}  # lower is better for log-loss
    assert sliced.best == {(1, 3), (4, 3)}
    assert cost.header == ["method", "bytes served", "bytes in training", "rows", "seeds", "seconds"]
    page = write_html(tmp_path, tmp_path / "page.html").read_text()
    assert page.count("<strong>") == 6
    assert "<strong>0.8000</strong>" in page
    assert "| A | **0.8000** | -0.1000 |" in (write_markdown(tmp_path, tmp_path / "docs") / "toy.md").read_text()


def test_served_bytes_are_drawn_where_a_result_says_them(tmp_path):
    write(tmp_path, "LowBit", "LowBit", {}, 1000, 0, 0.8, served_nbytes=250, training_nbytes=1000)
    write(tmp_path, "HashingTrick", "HashingTrick", {}, 500, 0, 0.8)
    (section,) = collect(tmp_path)[0].sections
    rows = {row.label: (row.nbytes, row.training_nbytes) for row in section.rows}
    assert rows == {"LowBit": (250, 1000), "HashingTrick": (500, 500)}


@pytest.mark.parametrize("number", [3, 10, 11, 40])
def test_no_two_lines_look_alike(number):
    styles = pictures._styles([f"method {place}" for place in range(number)])
    assert len({str(style["color"]) for style in styles.values()}) == number
    assert len({(style["marker"], style["linestyle"]) for style in styles.values()}) == number  # without colour, too


@pytest.mark.parametrize(("sizes", "least"), [([400, 401, 399], 4.0), ([100], 4.0), ([100, 1000], 10.0)])
def test_an_axis_does_not_span_rounding(sizes, least):
    low, high = pictures._span(sizes)
    assert low < min(sizes) <= max(sizes) < high
    assert high / low > least * 0.999
    assert high / low < 2 * least
