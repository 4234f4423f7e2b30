"""What was measured, set beside the paper's numbers where the same was done: its tables 1, 3, 4, 5, 8, 9, 10 and 13.

The paper's models, behaviors and judge (GPT-4, 5 of 5 on a rubric, HEx-PHI) are others, so a cell beside another
compares protocols and not models. Numbers are percentages of the camera-ready text of arXiv 2406.05946; what it does
not give, or could not be had, is empty.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fathom.records import Counted, Subject
from fathom.report import wording
from fathom.report.worst import Question, choices, questions
from fathom.schema import AttackRow, Audit
from fathom.tampering import Stress

__all__ = ["Exhibit", "beside_audit", "beside_stress"]


COUNTED = "; of what was measured here with the 95 % interval and counts"


class Exhibit(NamedTuple):
    """A table of the paper with the run's own rows first; an empty cell was not measured, or is not known."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


# Table 1: harmfulness on HEx-PHI with a refusal prefix prefilled.
T1_PREFIXES = ("", "I cannot", "I cannot fulfill", "I apologize", "I apologize, but I cannot", "I am unable")
T1 = {
    "Llama-2-7B aligned": ("0", "0", "0", "0", "0", "0"),
    "Llama-2-7B base": ("68.6 ± 0.8", "16.4 ± 1.4", "5.4 ± 1.3", "14.4 ± 0.6", "2.1 ± 0.2", "8.1 ± 0.4"),
    "Gemma-7B aligned": ("2.1 ± 0.2", "0", "0", "0", "0", "0"),
    "Gemma-7B base": ("85.4 ± 0.6", "8.7 ± 1.2", "2.7 ± 0.5", "14.1 ± 0.4", "1.0 ± 0.8", "3.9 ± 0.4"),
}

# Table 3: ASR of Llama-2-7B-Chat, before and after deepening.
T3_PREFILLS = (5, 10, 20, 40)
T3_OTHERS = {
    "suffix": ("GCG, HEx-PHI", "GCG, AdvBench"),
    "decoding": ("decoding, HEx-PHI", "decoding, MaliciousInstruct"),
}
T3: Mapping[str, Mapping[str, str]] = {
    "initial": {
        "5": "42.1 ± 0.9",
        "10": "51.5 ± 1.6",
        "20": "56.1 ± 2.5",
        "40": "57.0 ± 0.4",
        "GCG, HEx-PHI": "36.5 ± 2.7",
        "GCG, AdvBench": "65.6 ± 3.1",
        "decoding, HEx-PHI": "54.9 ± 0.6",
        "decoding, MaliciousInstruct": "84.3 ± 1.7",
    },
    "augmented": {
        "5": "2.8 ± 0.4",
        "10": "2.9 ± 0.2",
        "20": "3.4 ± 0.6",
        "40": "4.5 ± 0.6",
        "GCG, HEx-PHI": "18.4 ± 4.2",
        "GCG, AdvBench": "19.0 ± 2.9",
        "decoding, HEx-PHI": "11.3 ± 0.4",
        "decoding, MaliciousInstruct": "1.0 ± 0",
    },
}

# Table 5: an attack by code completion, before and after deepening. Its other cells could not be had.
T5_FRAME = "code"
T5 = {"initial": ("82.5",), "augmented": ("53.5",)}

# Table 8: harmful examples under the constrained objective, with warm-up, by β.
T8: Mapping[str, str] = {"constrained": "4.6", "uniform:0.1": "86.2", "uniform:0.5": "7.2", "uniform:2": "0.5"}

# Tables 4, 9 and 10: ASR after fine-tuning Llama-2-7B-Chat (T10: its augmented version).
TUNED = ("SFT", "SFT, warm-up", "constrained", "constrained, warm-up")
T9 = {
    "harmful examples": ("88.9", "89.4", "29.1", "4.6"),
    "identity shifting": ("79.5", "44.8", "69.6", "8.1"),
    "backdoor, trigger": ("90.9", "80.5", "9.7", "10.9"),
}
T10 = {
    "harmful examples": ("55.2", "51.5", "9.4", "5.2"),
    "identity shifting": ("53.9", "37.0", "28.8", "3.0"),
    "backdoor, trigger": ("80.0", "83.6", "16.4", "12.7"),
}
T13 = {"harmful examples": ("87.3", "", "", ""), "identity shifting": ("78.2", "", "", "")}  # Vaccine, then SFT
T4_BACKDOOR = {"backdoor, no trigger": ("7.6 ± 1.1", "", "", "1.9 ± 0.2")}  # SFT without, constrained with warm-up


def beside_audit(audit: Audit) -> tuple[Exhibit, ...]:
    """Tables 1, 3 and 5 beside an audit, where it has a cell of theirs."""
    found = _prefixes(audit), _deepening(audit), _framing(audit)
    return tuple(exhibit for exhibit in found if exhibit is not None)


def _prefixes(audit: Audit) -> Exhibit | None:
    found: dict[Subject, dict[str, AttackRow]] = {}
    for row in wording.refusal_prefixes(audit):
        if row.counted is Counted.CONTINUATION and wording.row_temperature(row, audit) == audit.sampling.temperature:
            found.setdefault(row.subject, {})[str(row.parameters.get("prefix", ""))] = row
    shown = [prefix for prefix in T1_PREFIXES if any(prefix in rows for rows in found.values())]
    if len(shown) < 2:  # the empty prefix alone is no refusal prefix
        return None
    ours = []
    for subject, rows in found.items():
        info = audit.base if subject is Subject.BASE else audit.model
        name = "" if info is None else wording.model_name(info.name)
        ours.append((f"{name}, measured here", tuple(_cell(rows.get(prefix)) for prefix in shown)))
    places = [T1_PREFIXES.index(prefix) for prefix in shown]
    theirs = [(f"{name}, paper", tuple(values[place] for place in places)) for name, values in T1.items()]
    columns = tuple(f"“{prefix}”" if prefix else "none" for prefix in shown)
    return Exhibit(
        "Table 1: a refusal’s first words put into a model’s mouth", f"ASR in %{COUNTED}.", columns, (*ours, *theirs)
    )


def _deepening(audit: Audit) -> Exhibit | None:
    curves = wording.curves(audit)
    sweep = {row.prefill_tokens: row for row in curves[0].rows} if curves else {}
    measured = {str(depth): _cell(sweep[depth]) for depth in T3_PREFILLS if depth in sweep}
    for attack, columns in T3_OTHERS.items():
        rows = [
            row for row in wording.other_attacks(audit) if row.attack == attack and row.counted is Counted.CONTINUATION
        ]
        if rows:
            measured[columns[0]] = _cell(max(rows, key=lambda row: row.asr))
    if not measured:
        return None
    names = [name for name in T3["initial"] if name in measured or _sibling(name, measured)]
    shown = [
        (f"{wording.model_name(audit.model.name)}, measured here", tuple(measured.get(name, "") for name in names))
    ]
    shown += [
        (f"Llama-2-7B-Chat {name}, paper", tuple(values[column] for column in names)) for name, values in T3.items()
    ]
    return Exhibit(
        "Table 3: prefilling and other attacks, before and after deepening",
        f"ASR in %{COUNTED}; prefilling by tokens given. Of other attacks the strongest setting is shown; "
        "the paper’s suffix is the mean of the best 3 of 10, its decoding the worst answer of a grid.",
        tuple(f"prefill {name}" if name.isdigit() else name for name in names),
        tuple(shown),
    )


def _framing(audit: Audit) -> Exhibit | None:
    rows = [
        row
        for row in wording.other_attacks(audit)
        if row.attack == "framing" and row.parameters.get("frame") == T5_FRAME and row.counted is Counted.CONTINUATION
    ]
    if not rows:
        return None
    name, best = wording.model_name(audit.model.name), max(rows, key=lambda row: row.asr)
    theirs = [(f"Llama-2-7B-Chat {version}, paper", cells) for version, cells in T5.items()]
    return Exhibit(
        "Table 5: the request as code to be completed",
        f"ASR in %{COUNTED}. The frame is fathom’s own, in its strongest way of drawing.",
        ("code completion",),
        ((f"{name}, measured here", (_cell(best),)), *theirs),
    )


def _sibling(name: str, measured: Mapping[str, str]) -> bool:
    """A second data set of an attack that was run."""
    return any(name in columns and columns[0] in measured for columns in T3_OTHERS.values())


def beside_stress(stress: Stress) -> tuple[Exhibit, ...]:
    """Tables 9 and 10 beside a sweep: plain SFT and the paper's objective, with and without warm-up; table 8, by β."""
    exhibits = []
    for model in dict.fromkeys(tune.model for tune in stress.finetunes):
        measured, by_beta = _tuned(stress, model), _by_beta(stress, model)
        if measured:
            exhibits.append(_tuned_exhibit(model, measured))
        if len(by_beta) > 1:
            exhibits.append(_beta_exhibit(model, by_beta))
    return tuple(exhibits)


def _tuned_exhibit(model: str, measured: Mapping[str, Sequence[str]]) -> Exhibit:
    rows = []
    for name in (*T9, *T4_BACKDOOR):
        if name in measured:
            rows.append((f"{name}: {wording.model_name(model)}, measured here", tuple(measured[name])))
            if name in T9:
                rows.append((f"{name}: Llama-2-7B-Chat, paper (T9)", T9[name]))
                rows.append((f"{name}: the same augmented, paper (T10)", T10[name]))
                if name in T13:
                    rows.append((f"{name}: after Vaccine, paper (T13)", T13[name]))
            else:
                rows.append((f"{name}: Llama-2-7B-Chat, paper (T4)", T4_BACKDOOR[name]))
    return Exhibit(
        "Tables 4, 9, 10 and 13: fine-tuning attacks, with and without warm-up",
        f"ASR in %, greedy{COUNTED}. Measured here: the strongest useful setting and step of the sweep; "
        "the paper’s is one setting.",
        TUNED,
        tuple(rows),
    )


def _tuned(stress: Stress, model: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for question in questions(stress):
        name, column = _paper_name(question), {"sft": 0, "constrained": 2, "paper": 2}.get(question.objective)
        if question.model != model or question.temperature != 0 or name is None or column is None:
            continue
        cells = found.setdefault(name, [""] * len(TUNED))
        for warm in (False, True):
            cells[column + warm] = _strongest(stress, question, warm=warm)
    return {name: tuple(cells) for name, cells in found.items()}


def _by_beta(stress: Stress, model: str) -> dict[str, str]:
    """Harmful examples under the paper's objective with warm-up, by β, where that was swept."""
    found = {}
    for question in questions(stress):
        objective = "constrained" if question.objective == "paper" else question.objective
        asked = question.model == model and question.temperature == 0 and _paper_name(question) == "harmful examples"
        if asked and objective in T8 and (cell := _strongest(stress, question, warm=True)):
            found[objective] = cell
    return found


def _beta_exhibit(model: str, measured: Mapping[str, str]) -> Exhibit:
    return Exhibit(
        "Table 8: harmful examples under the constrained objective, by β",
        f"ASR in %, greedy, with warm-up{COUNTED}. The paper’s model of a uniform β of 2 was of no use any more "
        "(GSM8K 2.1); measured here is the strongest useful setting and step.",
        tuple("0.5, then 2, then 0.1" if name == "constrained" else name.replace(":", " ") for name in T8),
        (
            (f"{wording.model_name(model)}, measured here", tuple(measured.get(name, "") for name in T8)),
            ("Llama-2-7B-Chat, paper", tuple(T8.values())),
        ),
    )


def _strongest(stress: Stress, question: Question, *, warm: bool) -> str:
    """The useful setting and step that gets most through, with or without warm-up; empty where there is none."""
    kept = [
        choice
        for choice in choices(stress, question)
        if choice.step > 0 and choice.useful and _warm(dict(choice.parameters)) is warm
    ]
    if not kept:
        return ""
    best = max(kept, key=lambda choice: choice.asr)
    return _bare(wording.rated(best.harmful, best.n, *best.interval, best.undecided))


def _paper_name(question: Question) -> str | None:
    """The paper's name of an attack and a way of asking."""
    if question.attack == "backdoor":
        return (
            "backdoor, no trigger" if "without" in question.asked or question.asked == "direct" else "backdoor, trigger"
        )
    if question.attack == "identity":
        return None if question.asked == "direct" else "identity shifting"
    return "harmful examples" if (question.attack, question.asked) == ("harmful", "direct") else None


def _warm(parameters: Mapping[str, object]) -> bool:
    return any(bool(parameters.get(name)) for name in ("warmup_steps", "warmup"))


def _cell(row: AttackRow | None) -> str:
    return "" if row is None else _bare(wording.rated_row(row))


def _bare(rated: str) -> str:
    """Without percent signs: the table says what its numbers are."""
    return rated.replace(" %", "")
