"""Why each site got its choice: from a study, from a policy file, as a table, a picture and a page."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from rich.console import Console

from search.explain import Explanation, Option, efficient, explain, explain_policy
from search.explain_plot import columns_of, grid, heat, lines, plot, table
from search.export import SelectionError, policy_files, write_policy
from search.front import front
from spaces.errors import ConfigError, StudyError
from spaces.policy import Policy
from spaces.site_space import SiteSpace
from spaces.space import Block, GroupSpace, Space, StudentSpace
from tests.commands import ROOT, refused, run
from tests.studies import CONFIG, MADE_UP, MIXED, SPACE, Told, describe, every_point, write_study

KINDS = ("output", "fisher", "gradient", "kl")
CHOICES = SPACE.sites[0].choices()  # 2, 4, 8 bits; then pruned by half
BYTES = [200, 400, 800, 120, 260, 500]
LOSSES = [0.8, 0.1, 0.001, 0.9, 0.3, 0.05]
KNEE = 4  # MIXED: body at 4 bits, head at 8


def site_of(places: tuple[SiteSpace, ...], name: str, times: float = 1.0, **more: Any) -> dict[str, Any]:
    """Made-up sensitivities of a site: each kind is half of the one before."""
    assert name in [one.name for one in places]
    known: dict[str, Any] = {"bytes": BYTES, "float32": 3200, **more}
    return known | {kind: [times * one / 2**i for one in LOSSES] for i, kind in enumerate(KINDS)}


def setting(fixed: Mapping[str, Any] | None = None, times: float = 1.0, loss: float | None = 0.0) -> dict[str, Any]:
    sites = {name: site_of(SPACE.sites, name, times) for name in ("body", "head")}
    return {"fixed": dict(fixed or {}), "loss": loss, "sites": sites}


def document(*settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"kinds": list(KINDS), "forwards": 1234, "backwards": 200, "settings": list(settings or [setting()])}


def write(folder: Path, known: Any, space: Space = SPACE, told: list[Told] | None = None) -> str:
    url = f"sqlite:///{folder}/store.db"
    more = {} if known is None else {"sensitivities": known}
    write_study(url, CONFIG.study, describe(CONFIG), space, told or MADE_UP, more)
    return url


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("study"), document())


@pytest.fixture(scope="module")
def found(url: str) -> Explanation:
    return explain("made-up", url)


def printed(found: Explanation, columns: int) -> str:
    console = Console(width=columns, record=True, file=StringIO())
    console.print(table(found, columns))
    return console.export_text()


class TestStudy:
    def test_it_explains_the_knee(self, url: str, found: Explanation) -> None:
        best = front("made-up", url).knee
        assert best is not None
        assert (found.trial, found.bytes, found.accuracy) == (best.trial, best.bytes, best.accuracy)
        assert found.exact
        assert (found.forwards, found.backwards) == (1234, 200)

    def test_each_site_has_its_choice_in_model_order(self, url: str) -> None:
        found = explain("made-up", url, trial=KNEE)
        assert [(one.site, one.option.choice) for one in found.sites] == [("body", "4 bits"), ("head", "8 bits")]
        body, head = found.sites
        assert (body.option.bytes, body.saved) == (400, 2800)
        assert body.option.losses == {"output": 0.1, "fisher": 0.05, "gradient": 0.025, "kl": 0.0125}
        assert head.larger is None

    def test_neighbours_are_the_nearest_that_no_other_choice_beats(self, url: str) -> None:
        body, head = explain("made-up", url, trial=KNEE).sites
        assert body.smaller is not None
        assert body.options[body.smaller].choice == "4 bits, 50 % pruned"
        assert body.larger is not None
        assert body.options[body.larger].choice == "8 bits, 50 % pruned"
        assert head.smaller == body.larger
        assert body.better is head.better is None

    def test_a_choice_that_another_one_beats_says_by_which(self, tmp_path: Path) -> None:
        known = setting()
        known["sites"]["body"]["kl"] = [0.8, 0.1, 0.001, 0.9, 0.05, 0.04]  # 50 % pruned at 4 bits beats 4 bits
        body = explain("made-up", write(tmp_path, document(known)), trial=KNEE).sites[0]
        assert body.better is not None
        assert body.options[body.better].choice == "4 bits, 50 % pruned"
        assert body.smaller == body.better

    def test_choices_are_compared_by_the_best_that_is_known(self, tmp_path: Path) -> None:
        known = setting()
        known["sites"]["body"]["kl"] = [0.5, *[None] * 5]
        url = write(tmp_path, document(known))
        assert explain("made-up", url).by == "gradient"
        assert explain("made-up", url, by="fisher").by == "fisher"
        measured = explain("made-up", url, by="kl", trial=KNEE)
        assert measured.by == "kl"
        assert [(one.smaller, one.larger, one.better) for one in measured.sites[:1]] == [(0, None, None)]

    def test_one_that_is_not_known_is_refused(self, tmp_path: Path) -> None:
        known = setting()
        for site in known["sites"].values():
            site["kl"] = [None] * 6
        url = write(tmp_path, document(known))
        with pytest.raises(ConfigError, match="--by: given kl, known in this study: output, fisher, gradient"):
            explain("made-up", url, by="kl")

    def test_without_float_bytes_nothing_is_said_to_be_saved(self, tmp_path: Path) -> None:
        known = setting()
        for site in known["sites"].values():
            del site["float32"]
        assert [one.saved for one in explain("made-up", write(tmp_path, document(known))).sites] == [None, None]

    def test_a_study_without_sensitivities_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(StudyError, match=r"'made-up' holds no sensitivities: .* search again under another name"):
            explain("made-up", write(tmp_path, None))

    @pytest.mark.parametrize(
        "known",
        [{}, {"kinds": ["kl"]}, [], {**document(), "settings": []}, document({"fixed": {}, "loss": 0, "sites": {}})],
    )
    def test_sensitivities_of_another_kind_are_refused(self, tmp_path: Path, known: Any) -> None:
        with pytest.raises(StudyError, match="sensitivities do not fit its space"):
            explain("made-up", write(tmp_path, known))

    def test_choices_of_another_number_are_refused(self, tmp_path: Path) -> None:
        known = setting()
        known["sites"]["body"]["kl"].append(1.0)
        with pytest.raises(StudyError, match="site body has 6 choices"):
            explain("made-up", write(tmp_path, document(known)))

    def test_a_trial_that_does_not_exist_is_refused(self, url: str) -> None:
        with pytest.raises(SelectionError, match="no finished trial 99"):
            explain("made-up", url, trial=99)


WIDE = Space(
    SPACE.sites,
    groups=(GroupSpace("group", (0.0, 0.25, 0.5)),),
    blocks=(Block("block", ("body",)),),
    students=(StudentSpace("small", (SiteSpace("only", ("uniform",), (0.0, 0.5), (2, 4, 8)),)),),
)
SETTINGS = [
    setting({"group/channels": 0.0, "block/dropped": "no", "model": "trained"}),
    {
        "fixed": {"model": "small"},
        "loss": 0.3,
        "sites": {"only": site_of(WIDE.students[0].sites, "only", 5.0)},
    },
    setting({"group/channels": 0.5, "block/dropped": "no", "model": "trained"}, 2.0, 0.2),
    {
        "fixed": {"group/channels": 0.0, "block/dropped": "yes", "model": "trained"},
        "loss": None,
        "sites": {"head": site_of(SPACE.sites, "head", 3.0)},
    },
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> str:
    student = WIDE.make({"only": CHOICES[1]}, model="small")
    told = [
        Told(WIDE.make(MIXED.sites), [(0.9, 100)]),
        Told(WIDE.make(MIXED.sites, channels={"group": 0.5}), [(0.8, 90)]),
        Told(WIDE.make(MIXED.sites, channels={"group": 0.25}), [(0.85, 95)]),
        Told(WIDE.make(MIXED.sites, dropped=("block",)), [(0.7, 80)]),
        Told(student, [(0.6, 70)]),
        Told(WIDE.make(MIXED.sites, dropped=("block",), channels={"group": 0.5}), [(0.5, 60)]),
    ]
    return write(tmp_path_factory.mktemp("settings"), document(*SETTINGS), WIDE, told)


class TestSettings:
    @pytest.mark.parametrize(
        ("trial", "losses", "own", "exact"),
        [
            (0, [0.1, 0.001], 0.0, True),
            (1, [0.2, 0.002], 0.2, True),
            (2, [0.1, 0.001], 0.0, False),
            (3, [0.003], None, True),
            (4, [0.5], 0.3, True),
            (5, [0.002], 0.2, False),
        ],
    )
    def test_losses_are_those_of_its_setting_or_of_the_nearest(
        self, settings: str, trial: int, losses: list[float], own: float | None, exact: bool
    ) -> None:
        found = explain("made-up", settings, trial=trial)
        assert [one.option.losses["output"] for one in found.sites] == pytest.approx(losses)
        assert (found.loss, found.exact) == (own, exact)

    def test_what_is_not_exact_is_said(self, settings: str) -> None:
        said = "\n".join(lines(explain("made-up", settings, trial=2)))
        assert "not computed for what this policy leaves of the model; these are with group/channels 0.0" in said
        said = "\n".join(lines(explain("made-up", settings, trial=1)))
        assert "not computed" not in said
        assert "uncompressed, is 0.2 from the brought one's outputs" in said


class TestPolicyFile:
    @pytest.fixture
    def policy(self, url: str, tmp_path: Path) -> Path:
        (one,) = policy_files([every_point(url)[KNEE]], "made-up", url)
        write_policy(one, tmp_path / "policy.json")
        return tmp_path / "policy.json"

    def test_it_is_explained_by_its_study(self, url: str, policy: Path) -> None:
        assert explain_policy(policy, url) == explain("made-up", url, trial=KNEE)

    def test_without_the_store_it_says_what_to_name(self, policy: Path, tmp_path: Path) -> None:
        where = (
            f"{policy} is trial 4 of study 'made-up'; name the store of its search with --storage: no study database"
        )
        with pytest.raises(StudyError) as caught:
            explain_policy(policy, f"sqlite:///{tmp_path}/other.db")
        assert str(caught.value).startswith(where)

    def test_another_study_or_trial_of_that_name_is_noticed(self, policy: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        url = write(other, document(), told=[Told(MIXED, [(0.9, 100)])])
        with pytest.raises(StudyError, match="name the store of its search with --storage: the study there has no"):
            explain_policy(policy, url)
        (tmp_path / "third").mkdir()
        url = write(tmp_path / "third", document(), told=[Told(MADE_UP[0].policy, [(0.9, 100)])] * 5)
        with pytest.raises(StudyError, match="that trial has another policy in this store"):
            explain_policy(policy, url)
        (tmp_path / "fourth").mkdir()
        write_study(url := f"sqlite:///{tmp_path}/fourth/store.db", "yours", describe(CONFIG), SPACE, MADE_UP[:1])
        with pytest.raises(StudyError, match="holds no study 'made-up'; it holds yours"):
            explain_policy(policy, url)


class TestEfficient:
    def test_it_keeps_what_no_other_beats(self) -> None:
        options = [Option(str(i), size, {"kl": loss}) for i, (size, loss) in enumerate(zip(BYTES, LOSSES, strict=True))]
        best = efficient(options, "kl")
        for i, one in enumerate(options):
            beaten = any(
                (other.bytes, other.losses["kl"] or 0) != (one.bytes, one.losses["kl"] or 0)
                and other.bytes <= one.bytes
                and (other.losses["kl"] or 0) <= (one.losses["kl"] or 0)
                for other in options
            )
            assert (i in [at for at, _ in best]) == (not beaten)
        assert [options[i].bytes for i, _ in best] == sorted(options[i].bytes for i, _ in best)

    def test_of_equal_ones_it_keeps_the_first_and_of_unknown_ones_none(self) -> None:
        options = [Option("a", 1, {"kl": None}), Option("b", 2, {"kl": 0.5}), Option("c", 2, {"kl": 0.5})]
        assert efficient(options, "kl") == [(1, 0.5)]


class TestTable:
    def test_it_shows_each_sensitivity_and_what_neighbours_cost(self, url: str) -> None:
        said = printed(explain("made-up", url, trial=KNEE), 160)
        for text in ("why: trial 4 of made-up", "fisher", "gradient", "kl", "2,800", " 0.025 "):
            assert text in said
        assert "4 bits, 50 % pruned: -140 B, +0.025" in said
        assert "8 bits, 50 % pruned: +100 B, -0.0063" in said

    def test_a_narrow_one_has_the_one_that_counts(self, url: str) -> None:
        said = printed(explain("made-up", url, trial=KNEE), 79)
        assert "kl" in said
        assert "fisher" not in said
        assert max(map(len, said.splitlines())) <= 79
        assert "-140 B " in said
        assert "+0.025 " in said
        assert len(said.splitlines()) <= 9

    def test_better_choices_are_named(self, tmp_path: Path) -> None:
        known = setting()
        known["sites"]["body"]["kl"] = [0.8, 0.1, 0.001, 0.9, 0.05, 0.04]
        found = explain("made-up", write(tmp_path, document(known)), trial=KNEE)
        said = "\n".join(lines(found))
        assert "* 1 of 2 sites: a choice of no more bytes is predicted to lose less:" in said
        assert "  body: 4 bits, 50 % pruned: -140 B, -0.05" in said
        assert "4 bits *" in printed(found, 160)
        assert "before training" in said  # trial 4 was trained


class TestHeatMap:
    def test_rows_are_sites_and_columns_choices_by_size(self, found: Explanation) -> None:
        names = columns_of(found)
        assert names == [
            "2 bits, 50 % pruned",
            "2 bits",
            "4 bits, 50 % pruned",
            "4 bits",
            "8 bits, 50 % pruned",
            "8 bits",
        ]
        assert [[one.choice if one else None for one in row] for row in grid(found)] == [names, names]

    def test_heat_is_bounded_below(self, tmp_path: Path) -> None:
        known = setting()
        known["sites"]["body"]["kl"] = [1.0, 0.0, 1e-30, 0.1, 0.01, None]
        found = explain("made-up", write(tmp_path, document(known)), by="kl")
        body = dict(zip(columns_of(found), heat(found)[0], strict=True))
        assert body["2 bits"] == 0.0
        assert body["4 bits"] == body["8 bits"] == -8.0
        assert body["8 bits, 50 % pruned"] != body["8 bits, 50 % pruned"]  # NaN
        assert heat(replace(found, sites=found.sites[:1]))[0][0] == body["2 bits, 50 % pruned"] == -1.0

    def test_a_picture(self, found: Explanation, tmp_path: Path) -> None:
        plot(found, tmp_path / "plots" / "heat.png")
        other = replace(found, sites=tuple(replace(one, chosen=0) for one in found.sites))
        plot(other, tmp_path / "other.PNG")
        one, two = imread(tmp_path / "plots" / "heat.png"), imread(tmp_path / "other.PNG")
        assert one.std() > 0.05
        assert (one != two).any()

    def test_a_page_that_needs_nothing_else(self, found: Explanation, tmp_path: Path) -> None:
        plot(found, tmp_path / "heat.html")
        page = (tmp_path / "heat.html").read_text(encoding="utf-8")
        assert "<script src" not in page
        for text in (
            "made-up, trial",
            "\\u003cb\\u003ebody\\u003c\\u002fb\\u003e: 4 bits",
            "(chosen)",
            "log10 of loss (kl)",
        ):
            assert text in page

    def test_other_files_are_refused(self, found: Explanation, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"--plot: given heat\.pdf, allowed a file that ends in"):
            plot(found, Path("heat.pdf"))
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="cannot be written"):
            plot(found, tmp_path / "file" / "heat.png")


class TestCommand:
    def test_json_is_the_document_and_nothing_else(self, url: str) -> None:
        ended = run("explain", "made-up", "--json", "--storage", url)
        assert ended.code == 0
        given = json.loads(ended.out)
        assert given == json.loads(json.dumps(explain("made-up", url).document()))
        assert given["sites"][0].keys() >= {"site", "choice", "bytes", "saved", "losses", "smaller", "larger", "better"}

    def test_a_table_a_plot_and_a_policy(self, url: str, tmp_path: Path) -> None:
        ended = run("explain", "--plot", str(tmp_path / "heat.html"), "--storage", url, "--by", "fisher")
        assert (ended.code, ended.err) == (0, f"wrote {tmp_path / 'heat.html'}\n")
        assert "loss is predicted by fisher" in ended.out
        assert run("export", "made-up", "-o", str(tmp_path / "policy.json"), "--storage", url).code == 0
        again = run("explain", str(tmp_path / "policy.json"), "--storage", url, "--by", "fisher")
        assert again.out == ended.out

    def test_bad_input_ends_with_2_and_what_does_not_hold_with_1(self, url: str, tmp_path: Path) -> None:
        assert "no such policy file" in refused(run("explain", str(tmp_path / "no.json"), "--storage", url), 2)
        assert "leave out one of them" in refused(run("explain", "a.json", "--trial", "3", "--storage", url), 2)
        assert "--by: given much" in refused(run("explain", "--by", "much", "--storage", url), 2)
        assert "holds no study 'yours'" in refused(run("explain", "yours", "--storage", url), 1)
        assert "no finished trial 77" in refused(run("explain", "--trial", "77", "--storage", url), 1)

    def test_it_needs_no_torch(self, url: str) -> None:
        code = (
            "import sys\nfrom search.explain import explain\n"
            f"found = explain('made-up', {url!r})\n"
            "import search.explain_plot\nassert 'torch' not in sys.modules and found.sites"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_mixed_is_what_the_numbers_here_are_for() -> None:
    assert isinstance(MIXED, Policy)
    assert [MIXED.sites[name].label for name in ("body", "head")] == ["4 bits", "8 bits"]
    assert [choice.label for choice in CHOICES][:3] == ["2 bits", "4 bits", "8 bits"]
