"""The report: one file that says what the run found, needs nothing else, and can be read by anybody."""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pages import BETTER, DETECTOR, HOSTILE, QUERIES, TRUTH, WORSE, page

from vmr_env.agents.health import HEALTH_FIGURES
from vmr_env.agents.tprl.config import default_config, with_stages
from vmr_env.agents.tprl.head_policy import head_policy_config
from vmr_env.benchmarks.cli import main as cli
from vmr_env.benchmarks.report import plots
from vmr_env.benchmarks.report.figures import CHANGES, _changes, stage_lengths, staged_curve
from vmr_env.benchmarks.report.html import FROM_POOL, PAGE_FILE, POOL_NOTE, render, write_report
from vmr_env.envs.curriculum import get_schedule
from vmr_env.errors import DataError
from vmr_env.metrics.spans import tiou

PAGE = page()
TEXT = render(PAGE)
VOID = {"meta", "input", "br", "link", "img", "hr"}


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed, in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.data = ""
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            if self.elements[-1][1].get("type") == "application/json":
                self.data += data
            return
        if "style" not in self.open:
            self.text.append(data)
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def read_of(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def read() -> Reader:
    return read_of(TEXT)


def test_everything_is_in_the_file_and_no_request_leaves_it(read: Reader) -> None:
    for tag, attributes in read.elements:
        assert tag not in ("link", "img", "iframe", "object")
        assert not {"src", "srcset", "action", "data"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "default-src 'none'" in TEXT
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", TEXT)
    assert "{{" not in TEXT  # no part was forgotten
    assert "{%" not in TEXT


def test_what_people_wrote_is_text_and_never_markup(read: Reader) -> None:
    assert json.loads(read.data)["queries"]["query"] == list(QUERIES)
    assert HOSTILE not in TEXT
    assert [tag for tag, _ in read.elements].count("script") == 2
    assert "tp & rl" in read.text


def test_table_has_every_row_with_its_interval(read: Reader) -> None:
    rows = {row[0]: row[1:] for row in reversed(read.rows)}  # of several tables the first
    assert rows["one, as published"][:5] == ["41.25", "12.50", "33.00", "21.00", ""]
    assert rows["ppo"][4] == "▲ +1.50 [+0.25, +2.75]"
    assert rows["random"][4] == "▼ -1.50 [-2.75, -0.25]"
    assert rows["tp & rl"][4] == "+0.50 [-1.00, +2.00]"  # not told from zero
    assert rows["ppo"][8] == "2 seeds; 1 of 2 runs fell back to the detector"
    assert [len(row) for row in read.rows[:5]] == [10] * 5


def test_a_pool_s_page_shows_what_learning_did_to_its_map() -> None:
    """Most of a pool's difference from one file is the other files' windows."""
    data = page()
    said = {"mean": 0.75, "low": 0.5, "high": 1.0}
    data["record"]["agents"]["ppo"]["change_from_pool"] = said
    found = read_of(render(data))
    head, *rows = found.rows[:5]
    assert head[9] == FROM_POOL == "Δ mAP from the pool unlearnt"
    assert {row[0]: row[9] for row in rows} == {
        "one, as published": "",
        "random": "",
        "ppo": "▲ +0.75 [+0.50, +1.00]",
        "tp & rl": "",
    }
    assert POOL_NOTE in found.text
    assert POOL_NOTE not in read_of(TEXT).text


def test_agents_are_compared_with_each_other(read: Reader) -> None:
    (start,) = (i for i, row in enumerate(read.rows) if row == ["agent", "ppo", "tp & rl"])
    # tIoU of at least 0.7: of ppo in 2 of 4 queries, of tp & rl in 1.
    assert read.rows[start + 1 : start + 3] == [
        ["ppo", "", "+25.00 [+0.00, +50.00]"],
        ["tp & rl", "-25.00 [-50.00, +0.00]", ""],
    ]


def test_health_goes_from_the_first_evaluation_to_the_last(read: Reader) -> None:
    (start,) = (i for i, row in enumerate(read.rows) if row[:2] == ["agent", "approximate kl"])
    head, told = read.rows[start : start + 2]
    assert dict(zip(head, told, strict=True)) == {
        "agent": "ppo",
        "approximate kl": "1 → 0.25",  # (0.5 + 1.5) / 2; the other training tells none at the end
        "entropy": "2 → 1",
    } | dict.fromkeys(
        ["clip fraction", "explained variance", "groups without spread", "gradient norm", "distinct samples"],
        "",
    )


def test_it_begins_with_what_was_found(read: Reader) -> None:
    text = "".join(read.text)
    assert "ppo: R1@0.7 +1.5 [+0.2, +2.8]: improved" in text
    assert "tp & rl: R1@0.7 +0.5 [-1.0, +2.0]: no significant change" in text
    assert text.index(": improved") < text.index("Results on test queries")


def test_abbreviations_are_explained_to_mouse_and_keyboard(read: Reader) -> None:
    explained = [attributes for tag, attributes in read.elements if tag == "abbr"]
    assert {(one["data-says"] or "").split(":")[0] for one in explained} == {
        "R1@0.5",
        "R1@0.7",
        "mIoU",
        "mAP",
        "Δ",
        *(name.partition("/")[2].replace("_", " ") for name in HEALTH_FIGURES),
    }
    assert all(one["tabindex"] == "0" and one["title"] in (one["data-says"] or "") for one in explained)


def test_scales_are_two_points_long_where_nothing_changed() -> None:
    assert plots._scale(0, 0) == (-1, 1)
    low, high = plots._scale(-3, 9)
    assert low < -3
    assert high > 9


def test_readers_of_screens_find_their_way(read: Reader) -> None:
    ids = Counter(attributes["id"] for _, attributes in read.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    for tag, attributes in read.elements:
        for name in ("aria-labelledby", "for"):
            assert set((attributes.get(name) or "").split()) <= set(ids), (tag, attributes)
        if (href := attributes.get("href")) is not None:
            assert href[1:] in ids
        if tag == "svg":
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"] or "") > 20
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    assert ("html", {"lang": "en"}) in read.elements
    labelled = re.findall(r"<label>[^<]+<(input|select)", TEXT)
    assert len(labelled) == sum(tag in ("input", "select") for tag, _ in read.elements) == 4


def test_explorer_has_the_spans_and_their_tiou(read: Reader) -> None:
    data = json.loads(read.data)
    assert data["queries"]["moments"] == [row.moments.tolist() for row in TRUTH]
    assert data["detector"]["spans"] == [list(span) for span in DETECTOR]
    for spans, (agent, seed) in ((BETTER, ("ppo", "0")), (WORSE, ("tp & rl", "0"))):
        found = data["agents"][agent][seed]
        assert found["spans"] == [list(span) for span in spans]
        # Without gaps between span and moment both IoU formulas of the field agree.
        expected = [
            max(float(tiou(np.array(span), moment)) for moment in row.moments)
            for span, row in zip(spans, TRUTH, strict=True)
        ]
        np.testing.assert_allclose(found["ious"], expected, atol=1e-4)


def figures() -> dict[str, ET.Element]:
    """SVG of each figure, by its heading."""
    found = re.findall(r"<figure><h3>(.*?)</h3>(<svg.*?</svg>)", TEXT)
    return {title: ET.fromstring(svg) for title, svg in found}


def test_figures_are_all_there() -> None:
    assert list(figures()) == [
        "Change in R1@0.7",
        "Change in mIoU",
        "Learning through the stages",
        "Learning",
        "Action use through the stages",
        "Error of the start",
        "Error of the end",
        "Reliability of scores",
        "What agents did",
        "ppo: before and after",
        "tp &amp; rl: before and after",
    ]


def points(line: ET.Element) -> np.ndarray:
    return np.array([pair.split(",") for pair in line.attrib["points"].split()], float)


def test_learning_curves_are_the_means_of_the_trainings() -> None:
    drawing = figures()["Learning"]
    label = drawing.attrib["aria-label"]
    assert label.endswith("ppo +3.00")  # the mean of 2 and 4 points
    zero, curve = (points(line) for line in drawing.iter("polyline"))
    (band,) = (points(polygon) for polygon in drawing.iter("polygon"))
    half = len(band) // 2  # there along the lower edge, and back along the upper one
    low, high = zero[0, 1] - band[half - 1, 1], zero[0, 1] - band[half, 1]
    # Draws of two trainings are both times the one with 2 points, the one with 4, or one of each.
    assert high == pytest.approx(2 * low, abs=0.3)
    assert zero[0, 1] == zero[-1, 1] == curve[0, 1]  # it starts where the detector is
    middle, end = curve[len(curve) // 2, 1], curve[-1, 1]
    assert curve[0, 1] - middle == pytest.approx((curve[0, 1] - end) * 2 / 3, abs=0.2)  # 2 of 3 points


def test_stages_have_one_width_whatever_their_length() -> None:
    # Epoch 1 is all of stage 1, epochs 2 to 4 are stage 3; stage 2 is left out.
    xs, ys = staged_curve(([1, 2, 3, 4], [0.01, 0.0, 0.02, 0.03]), (1, 0, 3))
    np.testing.assert_allclose(xs, [0, 1, 2, 2 + 1 / 3, 2 + 2 / 3, 3])
    np.testing.assert_allclose(ys, [0, 1, 1, 0, 2, 3])
    xs, ys = staged_curve(([1, 2], [0.01, 0.02]), (0, 0, 2))
    np.testing.assert_allclose([xs, ys], [[0, 2, 2.5, 3], [0, 0, 1, 2]])
    drawing = figures()["Learning through the stages"]
    names = [text.text for text in drawing.iter("text")]
    assert names[:3] == ["stage 1", "stage 2", "stage 3"]


def test_stages_are_read_from_the_settings_of_heads() -> None:
    assert stage_lengths(asdict(default_config("charades"))) == (2, 4, 42)
    assert stage_lengths(asdict(head_policy_config("ppo"))) == (2, 4, 34)
    assert stage_lengths(asdict(replace(default_config("charades"), schedule=get_schedule("linear")))) == ()
    assert stage_lengths({}) == ()


def test_action_use_at_the_end_of_each_stage_and_of_training() -> None:
    label = figures()["Action use through the stages"].attrib["aria-label"]
    said = dict(part.split(": ") for part in label.partition(". ")[2].split("; "))
    assert said["ppo"].startswith("kept 38%, start moved 25%, end moved 12%")  # the mean of both trainings
    assert said["tp & rl, stage 1"].startswith("kept 50%, start moved 50%")
    assert said["tp & rl, stage 3"].endswith("another proposal 50%")
    assert "tp & rl, stage 2" not in said


def test_differences_have_their_intervals() -> None:
    drawing = figures()["Change in mIoU"]
    zero, *intervals = (points(line)[:, 0] for line in drawing.iter("polyline"))
    means = [float(disc.attrib["cx"]) for disc in drawing.iter("circle")]
    unit = (intervals[0][1] - intervals[0][0]) / 2.5  # ppo: from 0.25 to 2.75
    assert [means[0] - zero[0], means[1] - zero[0]] == pytest.approx([1.5 * unit, 0.5 * unit], abs=0.2)
    assert [title.text for title in drawing.iter("title")] == ["+1.50 [+0.25, +2.75]", "+0.50 [-1.00, +2.00]"]


def test_an_agent_has_one_colour_on_the_whole_page() -> None:
    keys = re.findall(r'<li><span class="key series (s\d)" aria-hidden="true"></span>(.*?)</li>', TEXT)
    assert set(keys) == {("s0", "detector"), ("s1", "ppo"), ("s2", "tp &amp; rl")}


def test_more_agents_than_colours_are_told_apart_by_their_lines() -> None:
    classes = [plots.series(number) for number in range(13)]
    assert classes[:7] == ["s0", "s1", "s2", "s3", "s4", "s5", "s6"]
    assert classes[7:] == [f"{name} again" for name in classes[1:7]]


def test_hashes_that_agents_share_stand_there_once() -> None:
    record = PAGE["record"]
    shared = {
        "encoder": {"before": "aa11", "after": ["aa11"]},
        "decoder": {"before": "bb22", "after": ["cc33"]},
    }
    rows = {name: row | {"frozen": shared} for name, row in record["agents"].items()}
    text = render(PAGE | {"record": record | {"agents": rows}})
    assert text.count("aa11  encoder") == text.count("bb22  decoder  then cc33") == 1
    assert text.count("Hashes as those of ppo.") == 1


def test_variants_of_one_method_are_told_by_what_they_differ_in() -> None:
    tprl = asdict(default_config("charades"))
    other = asdict(with_stages(replace(default_config("charades"), reward="step"), (0, 6, 42)))
    record = PAGE["record"]
    rows = {
        name: record["agents"]["tp & rl"] | {"config": config}
        for name, config in (("tprl", tprl), ("steps", other), ("head", asdict(head_policy_config("ppo"))))
    }
    record = record | {"agents": record["agents"] | rows}
    text = render(PAGE | {"record": record})
    table = text.partition(">Variants of one method</h3>")[2].partition("</table>")[0]
    cells = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', table)
    assert cells == [
        ("tprl", "what the next ones are compared with"),
        ("steps", "reward step, epochs 0 + 6 + 42"),
    ]
    assert "Ablations" not in text
    assert "Variants of one method" not in TEXT
    ablated = record["run"] | {"command": "vmr-env tprl --weights w --ablate"}
    assert ">Ablations</h3>" in render(PAGE | {"record": record | {"run": ablated}})


def test_shares_of_what_agents_did() -> None:
    label = figures()["What agents did"].attrib["aria-label"]
    # ppo, seed 0: (0,10)->(5,10) start; kept; (4,14)->(5,15) both; kept.
    assert "ppo: kept 50%, start only 25%, end only 0%, both 25%" in label
    # (0,10)->(0,1) end; (5,15)->(0,14) both; (4,14)->(4,15) end; kept.
    assert "tp & rl: kept 25%, start only 0%, end only 50%, both 25%" in label
    bars = [float(bar.attrib["width"]) for bar in figures()["What agents did"].iter("rect")]
    assert sum(bars[:4]) == pytest.approx(sum(bars[4:]), abs=0.5)
    assert bars[0] == pytest.approx(2 * bars[1], abs=0.2)


def test_errors_of_boundaries_are_from_the_best_moment() -> None:
    label = figures()["Error of the start"].attrib["aria-label"]
    # Starts 0, 5, 4, 0 against 5, 5, 5, 5 (the span 0-2 of the last one is nearest to the first moment).
    assert "detector 3.0 s" in label
    assert "ppo 0.0 s" in label


def test_discs_count_every_query_once() -> None:
    drawing = figures()["ppo: before and after"]
    counts = [int(title.text.split()[0]) for title in drawing.iter("title") if title.text]
    assert sum(counts) == len(TRUTH)
    assert "50% of queries better, 0% worse" in drawing.attrib["aria-label"]


def test_reliability_is_the_share_of_right_answers_by_score() -> None:
    drawing = figures()["Reliability of scores"]
    discs = list(drawing.iter("circle"))
    detector = [disc for disc in discs if "s0" in disc.attrib["class"].split()]
    xs = [float(disc.attrib["cx"]) for disc in detector]
    assert xs == sorted(xs)
    assert len(xs) == len(TRUTH)
    # tIoU of the detector: 1/3, 1, 9/11, 0.
    heights = [float(disc.attrib["cy"]) for disc in detector]
    assert heights[0] == heights[3] > heights[1] == heights[2]


def test_provenance_has_command_versions_settings_and_hashes(read: Reader) -> None:
    text = "|".join(read.text)
    for part in (
        "python benchmarks/run_tprl.py --agents ppo 'tp & rl'",
        "versions.torch|2.13.0",
        "lr|0.125",
        "frozen tensors with the same sha256 before and after|1 of 2",
    ):
        assert part in text


def test_report_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / PAGE_FILE).write_text(json.dumps(PAGE))
    done = CliRunner().invoke(cli.main, ["report", str(run)])
    assert (done.exit_code, done.output) == (0, f"{run / 'report.html'}\n")
    assert (run / "report.html").read_text(encoding="utf-8") == TEXT
    other = CliRunner().invoke(cli.main, ["report", str(run), "--out", str(tmp_path / "o.html")])
    assert other.exit_code == 0
    assert (tmp_path / "o.html").exists()


@pytest.mark.parametrize("content", [None, "no JSON", "[]", "{}", '{"heading": 1}'])
def test_broken_folders_are_one_clear_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / PAGE_FILE).write_text(content)
    with pytest.raises(DataError, match=r"page\.json: cannot be used \(.*expected what a run leaves"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
    assert CliRunner().invoke(cli.main, ["report", str(tmp_path)]).exit_code == 1


def test_a_run_without_agents_has_a_page_too() -> None:
    bare = PAGE | {"agents": {}, "curves": {}, "uses": {}, "record": PAGE["record"] | {"agents": {}}}
    text = render(bare)
    assert "Learning" not in text
    assert "Error of the start" in text


def test_another_proposal_has_not_moved() -> None:
    before, after = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [[0.0, 1.0], [2.5, 3.0], [7.0, 9.0]]
    shares = dict(zip(CHANGES, _changes(before, after, [False, False, True]), strict=True))
    third = pytest.approx(1 / 3)
    assert shares == {"kept": third, "start only": third, "end only": 0, "both": 0, "another proposal": third}
