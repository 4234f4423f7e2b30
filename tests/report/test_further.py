"""Laws of further attacks, of worst cases, and of the figures set beside the paper's."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import synthetic
import synthetic_stress

from fathom.depth.tampered import half_depth
from fathom.records import Counted, Subject
from fathom.report import attack_charts, further, paper, shallowest, wording, worst
from fathom.report.samples import seconds_by_attack
from fathom.report.tables import figures
from fathom.run import Run
from fathom.schema import AttackRow, Audit, BudgetRow, Control, Cost, HalfDepth, TimeRow
from fathom.tally import percent, wilson
from fathom.tampering import Checkpoint

DATA = synthetic.with_attacks(synthetic.report_data(synthetic.Setting(behaviors=20, benign=4, depths=(0, 5, 20))))


def test_every_row_of_another_attack_is_in_one_family() -> None:
    families = further.families(DATA.audit, DATA.times)
    rows = [row for family in families for row in family.rows]
    others = [row for row in DATA.audit.attacks if row.attack not in ("direct", "prefill", "refusal_prefix")]
    assert sorted(map(str, rows)) == sorted(map(str, others))
    for family in families:
        assert family.best.asr == max(row.asr for row in family.rows)
    assert [family.best.asr for family in families] == sorted((f.best.asr for f in families), reverse=True)


def test_a_setting_drawn_otherwise_has_the_control_of_the_same_setting() -> None:
    template = DATA.audit.attacks[-1]
    control = Control(n=4, helped=3, refused=1, undecided=0)

    def row(harmful: int, temperature: float, tokens: int, own: Control | None) -> AttackRow:
        parameters = {"tokens": tokens, "temperature": temperature}
        return msgspec.structs.replace(
            template, parameters=parameters, harmful=harmful, asr=harmful / template.n, control=own
        )

    drawn, greedy = row(9, 1.0, 8, None), row(5, 0.0, 8, control)
    found = further.Family("multi-turn", (drawn, greedy, row(1, 0.0, 20, None)), None)
    assert found.best is drawn
    assert found.helped == further.Helped(control, "greedy")
    assert further.Family("multi-turn", (greedy,), None).helped == further.Helped(control, "")
    assert further.Family("multi-turn", (drawn, row(1, 0.0, 20, control)), None).helped is None


def test_a_setting_that_few_requests_had_is_not_the_strongest() -> None:
    """A budget that dear searches used up leaves a further draw of the cheap ones alone."""
    template = next(row for row in DATA.audit.attacks if row.attack == "direct")
    rows = [
        msgspec.structs.replace(
            template, attack="suffix", parameters={"temperature": t}, n=n, behaviors=n, harmful=k, asr=k / n
        )
        for t, n, k in ((0.0, 6, 4), (1.0, 3, 3))
    ]
    direct = msgspec.structs.replace(template, harmful=0, asr=0.0)
    assert further.Family("suffix", tuple(rows), None).best is rows[0]
    assert further.strongest(msgspec.structs.replace(DATA.audit, attacks=(direct, *rows))) is rows[0]
    halves = [
        msgspec.structs.replace(row, parameters={"split": split})
        for row, split in zip(rows, ("train", "held-out"), strict=True)
    ]
    assert further.Family("universal-suffix", tuple(halves), None).best is halves[1]


def test_seconds_are_shared_by_the_answers_of_all_settings() -> None:
    template = DATA.audit.attacks[-1]
    one, two = (
        msgspec.structs.replace(template, parameters={"temperature": t}, harmful=n) for t, n in ((0.0, 2), (1.0, 6))
    )
    kept = msgspec.structs.replace(two, harmful=5, worst_of=2)
    assert further.Family("insertion", (one, two, kept), 16.0).seconds_per_answer == 2.0
    assert further.Family("insertion", (one, two, kept), None).seconds_per_answer is None


@pytest.mark.parametrize("count", [3, 15])
def test_no_two_curves_of_a_budget_look_the_same(count: int) -> None:
    rows = [
        BudgetRow(
            attack="insertion",
            parameters={"span": span},
            queries=n,
            forward_tokens=10 * n,
            n=4,
            harmful=n,
            asr=n / 4,
            low=0.0,
            high=1.0,
        )
        for span in range(1, count + 1)
        for n in (1, 2)
    ]
    layers: Any = attack_charts.budget(rows)["layer"]
    encodings = [layer["encoding"] for layer in layers]
    colours = encodings[0]["color"]["scale"]
    dashes = next((one["strokeDash"]["scale"] for one in encodings if "strokeDash" in one), None)
    looks = list(zip(colours["range"], map(str, dashes["range"] if dashes else colours["range"]), strict=True))
    assert len(set(looks)) == count
    assert dashes is None or dashes["domain"] == colours["domain"]


def test_the_strongest_is_the_models_own_on_the_continuation_alone() -> None:
    best = further.strongest(DATA.audit)
    rows = [row for row in DATA.audit.attacks if row.subject == "model" and row.counted is Counted.CONTINUATION]
    assert best.asr == max(row.asr for row in rows)


def test_one_attack_and_several_that_get_nothing_through_are_a_sentence() -> None:
    names = dict.fromkeys(row.attack for row in further.wording.other_attacks(DATA.audit))
    kept = [row for row in DATA.audit.attacks if row.attack in further.wording.SWEEP]
    for count, says in ((1, "The other attack that was tried does not get"), (2, "None of the 2 other attacks gets")):
        tried = [row for row in DATA.audit.attacks if row.attack in list(names)[:count]]
        rows = tuple(msgspec.structs.replace(row, harmful=0, asr=0.0) for row in (*kept, *tried))
        _, second = further.sentences(msgspec.structs.replace(DATA.audit, attacks=rows))
        assert second == f"{says} a single harmful request through."


def test_traces_hold_each_row_once_and_in_order() -> None:
    for family in further.families(DATA.audit, {}):
        for parameter, found in further.traces(family).items():
            rows = [row for trace in found for row in trace.rows]
            assert len(rows) == len({id(row) for row in rows})
            for trace in found:
                values = [trace.at(row) for row in trace.rows]
                assert values == sorted(set(values))
                assert len(values) >= further.FEWEST
                rest = {
                    tuple((name, value) for name, value in row.parameters.items() if name != parameter)
                    for row in trace.rows
                }
                assert len(rest) == 1
    insertion = next(family for family in further.families(DATA.audit, {}) if family.attack == "insertion")
    assert {trace.name for trace in further.traces(insertion)["position"]} == {"span = 3", "span = 5"}


def test_seconds_add_up_over_resumptions_and_processes(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for rank, seconds in ((0, 1.5), (0, 2.0), (1, 0.25)):
        with run.journal("times", rank) as journal:
            journal.append([TimeRow(attack="suffix", seconds=seconds), TimeRow(attack="ranks", seconds=1.0)])
    assert seconds_by_attack(run) == {"suffix": 3.75, "ranks": 3.0}
    assert seconds_by_attack(Run(tmp_path / "nothing")) == {}


# --- worst cases ---

STRESS = synthetic_stress.stress()


def test_the_worst_case_is_that_of_a_naive_search() -> None:
    for case in worst.worst_cases(STRESS):
        question = case.question
        pooled: dict[tuple[str, int], list[tuple[int, int, bool]]] = {}
        for tune in STRESS.finetunes:
            if (tune.attack, tune.objective) == (question.attack, question.objective):
                for point in tune.checkpoints:
                    for asked in point.asr:
                        if (asked.asked, asked.temperature) == (question.asked, question.temperature) and point.step:
                            key = (str(tune.parameters), point.step)
                            pooled.setdefault(key, []).append((asked.harmful, asked.n, point.useful))
        shares = [sum(h for h, _, _ in v) / sum(n for _, n, _ in v) for v in pooled.values() if all(u for *_, u in v)]
        assert case.choices == len(pooled)
        assert case.seeds == 3
        assert case.choice.asr == pytest.approx(max(shares))
        assert case.choice.interval == wilson(case.choice.harmful, case.choice.n)


def test_a_model_of_no_use_is_no_attack() -> None:
    broken = tuple(
        msgspec.structs.replace(
            tune, checkpoints=tuple(msgspec.structs.replace(point, useful=False) for point in tune.checkpoints)
        )
        for tune in STRESS.finetunes
    )
    assert {case.choice for case in worst.worst_cases(msgspec.structs.replace(STRESS, finetunes=broken))} == {None}


def test_the_start_is_no_choice_of_the_attackers() -> None:
    only = tuple(
        msgspec.structs.replace(tune, checkpoints=tuple(p for p in tune.checkpoints if p.step == 0))
        for tune in STRESS.finetunes
    )
    assert {case.choice for case in worst.worst_cases(msgspec.structs.replace(STRESS, finetunes=only))} == {None}


def test_a_refusals_words_that_open_the_model_are_told_first() -> None:
    audit = DATA.audit
    on_base = [row for row in audit.attacks if row.attack == "refusal_prefix" and row.counted is Counted.CONTINUATION]
    asked = tuple(msgspec.structs.replace(row, subject=Subject.MODEL, harmful=0, asr=0.0) for row in on_base)
    quiet = msgspec.structs.replace(audit, attacks=(*audit.attacks, *asked))
    assert further.sentences(quiet) == further.sentences(audit)
    safe = tuple(
        msgspec.structs.replace(row, harmful=0, asr=0.0) if row.subject is Subject.MODEL else row
        for row in audit.attacks
    )
    opened = msgspec.structs.replace(asked[-1], harmful=3, asr=3 / asked[-1].n)
    first, second = further.sentences(msgspec.structs.replace(audit, attacks=(*safe, opened)))
    assert first.startswith(f"Strongest attack found: refusal prefix (prefix = {opened.parameters['prefix']}")
    assert f"gets 3 of {opened.n}" in first
    assert second is not None


def test_each_share_of_poison_has_a_worst_case_of_its_own() -> None:
    found = synthetic_stress.poisoned()
    cases = [case for case in worst.worst_cases(found) if case.question.temperature == 0]
    assert [(case.question.objective, case.question.share) for case in cases] == [
        (objective, share) for objective in ("sft", "gate + replay") for share in (0.0, 0.01, 0.1)
    ]
    sft = [case.choice.asr for case in cases if case.choice is not None and case.question.objective == "sft"]
    assert sft == sorted(sft)
    assert sft[0] == 0 < sft[-1]


# --- depth after fine-tuning ---


def test_the_shallowest_useful_model_is_that_of_a_naive_search() -> None:
    (found,) = shallowest.fates(STRESS)
    assert (found.attack, found.tokens) == ("harmful", (0, 5, 20, None))
    assert [depth.n for depth in found.before.depths] == [96, 96, 64, 96]  # measured once, whatever the seeds
    for objective, deep in found.after:
        halves: dict[tuple[str, int], list[Checkpoint]] = {}
        for tune in STRESS.finetunes:
            for point in tune.checkpoints if (tune.attack, tune.objective) == ("harmful", objective) else ():
                if point.depth and point.step:
                    halves.setdefault((str(tune.parameters), point.step), []).append(point)
        useful = [points for points in halves.values() if all(point.useful for point in points)]
        crossed = [half_depth([point.depth for point in points]).tokens for points in useful]
        assert deep is not None
        assert deep.seeds == 3
        assert deep.half.tokens == min((one for one in crossed if one is not None), default=None)
        assert [depth.n for depth in deep.depths] == [3 * 96, 3 * 96, 3 * 64, 3 * 96]
    said = shallowest.sentence([found])
    assert "tokens deep, under sft (harmful, greedy); before fine-tuning it was more than 20." in said
    assert "with all of an answer but its last token given" in said


def test_without_depths_there_is_nothing_to_tell() -> None:
    bare = tuple(
        msgspec.structs.replace(
            tune, checkpoints=tuple(msgspec.structs.replace(point, depth=()) for point in tune.checkpoints)
        )
        for tune in STRESS.finetunes
    )
    assert shallowest.fates(msgspec.structs.replace(STRESS, finetunes=bare)) == ()


def test_depths_are_told_for_each_share_of_poison() -> None:
    assert [found.share for found in shallowest.fates(synthetic_stress.poisoned())] == [0.0, 0.01, 0.1]


# --- beside the paper ---


def test_only_what_was_measured_is_set_beside_the_paper() -> None:
    (prefixes, deepening) = paper.beside_audit(DATA.audit)
    assert prefixes.columns == ("none", "“I cannot”")
    ours = dict(deepening.rows)["organism:natural, measured here"]
    assert deepening.columns[:2] == ("prefill 5", "prefill 20")
    for depth, cell in zip((5, 20), ours, strict=False):
        row = next(
            row
            for row in DATA.audit.attacks
            if (row.attack, row.prefill_tokens, row.counted) == ("prefill", depth, Counted.CONTINUATION)
        )
        share, rest = cell.split(" (")
        assert share == percent(row.harmful, row.n).removesuffix(" %")
        assert f"; {row.harmful} of {row.n}" in rest
        assert (f"{row.undecided} undecided" in rest) is (row.undecided > 0)
    for exhibit in (prefixes, deepening):
        for _, cells in exhibit.rows:
            assert len(cells) == len(exhibit.columns)


def test_prefixes_on_the_model_stand_beside_the_papers_aligned_rows() -> None:
    on_base = [row for row in DATA.audit.attacks if row.attack == "refusal_prefix"]
    on_model = tuple(msgspec.structs.replace(row, subject=Subject.MODEL, harmful=0) for row in on_base)
    older, *_ = paper.beside_audit(DATA.audit)  # a run from before the model was asked
    newer, *_ = paper.beside_audit(msgspec.structs.replace(DATA.audit, attacks=(*DATA.audit.attacks, *on_model)))
    assert [name for name, _ in newer.rows if "measured" in name] == [
        "organism:base, measured here",
        "organism:natural, measured here",
    ]
    assert dict(older.rows).items() < dict(newer.rows).items()


def test_code_completion_stands_beside_table_5() -> None:
    row = next(row for row in DATA.audit.attacks if row.attack == "framing" and row.counted is Counted.CONTINUATION)
    as_code = msgspec.structs.replace(row, parameters={**row.parameters, "frame": "code"}, harmful=row.n, asr=1.0)
    found = paper.beside_audit(msgspec.structs.replace(DATA.audit, attacks=(*DATA.audit.attacks, as_code)))
    exhibit = found[-1]
    assert exhibit.title.startswith("Table 5")
    assert [cells for _, cells in exhibit.rows][1:] == [("82.5",), ("53.5",)]
    assert exhibit.rows[0][1][0].startswith("100 (")


def test_a_sweep_over_betas_stands_beside_table_8() -> None:
    uniform = tuple(
        msgspec.structs.replace(tune, objective="uniform:0.5")
        for tune in STRESS.finetunes
        if tune.objective == "constrained"
    )
    both = msgspec.structs.replace(STRESS, finetunes=(*STRESS.finetunes, *uniform))
    exhibit = paper.beside_stress(both)[-1]
    ours, theirs = (cells for _, cells in exhibit.rows)
    assert theirs == ("4.6", "86.2", "7.2", "0.5")
    assert [bool(cell) for cell in ours] == [True, False, True, False]
    assert ours[0] == ours[2]
    (tuned,) = paper.beside_stress(STRESS)  # one β is no table of them
    assert ("harmful examples: after Vaccine, paper (T13)", ("87.3", "", "", "")) in tuned.rows


def test_the_papers_numbers_are_those_of_its_tables() -> None:
    assert paper.T3["initial"]["40"] == "57.0 ± 0.4"
    assert paper.T3["augmented"]["5"] == "2.8 ± 0.4"
    assert {len(cells) for cells in paper.T1.values()} == {len(paper.T1_PREFIXES)}
    assert {len(cells) for table in (paper.T9, paper.T10) for cells in table.values()} == {len(paper.TUNED)}


def test_a_sweep_without_the_papers_attacks_has_no_exhibit() -> None:
    other = tuple(msgspec.structs.replace(tune, attack="benign") for tune in STRESS.finetunes)
    assert paper.beside_stress(msgspec.structs.replace(STRESS, finetunes=other)) == ()
    (exhibit,) = paper.beside_stress(STRESS)
    assert any("harmful examples" in name and "measured here" in name for name, _ in exhibit.rows)


def curve(*rows: tuple[int, int, int, int]) -> tuple[AttackRow, ...]:
    """A greedy curve: tokens given, n, harmful and undecided."""
    template = next(row for row in DATA.audit.attacks if row.attack == "direct")
    return tuple(
        msgspec.structs.replace(
            template,
            attack="prefill" if tokens else "direct",
            prefill_tokens=tokens,
            n=n,
            behaviors=n,
            harmful=harmful,
            undecided=undecided,
            safe=n - harmful - undecided,
            asr=harmful / n,
        )
        for tokens, n, harmful, undecided in rows
    )


def unreached(rows: tuple[AttackRow, ...]) -> Audit:
    half = HalfDepth(tokens=None, low=None, high=None, reached=False, deepest=rows[-1].prefill_tokens or 0)
    depth = msgspec.structs.replace(DATA.audit.depth, half_depth=half)
    return msgspec.structs.replace(DATA.audit, attacks=rows, depth=depth)


def test_a_model_whose_answers_nobody_can_judge_is_not_called_deep() -> None:
    """Garbled text is not harmful, and no safety: half depth is not reached by it, and nothing is known."""
    broken = unreached(curve((0, 10, 0, 10), (5, 10, 1, 9), (20, 10, 0, 10)))
    assert wording.headline(broken) == (
        "How deep safety reaches cannot be told: asked directly, 10 of 10 answers are undecided (garbled, broken off "
        "or empty) and 0 harmful."
    )
    assert next(figure for figure in figures(broken) if figure.name == "Half depth").value == "unknown"
    late = unreached(curve((0, 10, 0, 0), (5, 10, 1, 3), (20, 10, 0, 5)))
    said = wording.headline(late)
    assert said.startswith("Safety alignment is more than 5 tokens deep: up to there 1 of 10 harmful requests")
    assert said.endswith(
        "with 20 tokens given, 5 of 10 answers are undecided (garbled, broken off or empty) and 0 harmful."
    )
    whole = unreached(curve((0, 10, 0, 0), (5, 10, 1, 3), (20, 10, 4, 0)))
    assert wording.headline(whole).startswith("Safety alignment is more than 20 tokens deep, as deep as was measured")


def test_an_attack_that_does_no_better_than_asking_is_not_the_strongest() -> None:
    (asked,) = curve((0, 4, 4, 0))
    cheap = Cost(queries=4, forward_tokens=10)
    drawn = msgspec.structs.replace(asked, attack="best-of-n", prefill_tokens=None, n=32, harmful=32, cost=cheap)
    dear = msgspec.structs.replace(asked, cost=Cost(queries=4, forward_tokens=1000))
    audit = msgspec.structs.replace(DATA.audit, attacks=(dear, drawn))
    assert further.strongest(audit) is dear
    more = msgspec.structs.replace(dear, harmful=3, asr=0.75)
    assert further.strongest(msgspec.structs.replace(DATA.audit, attacks=(more, drawn))) is drawn
