"""The command line answers at once: no torch before a model is needed."""

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "altair", "numpy.testing")
CHECK = f"""
import sys
{{code}}
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"imported: {{{{loaded}}}}" if loaded else 0)
"""
HELP = """
import contextlib, io
from fathom.__main__ import run
with contextlib.redirect_stdout(io.StringIO()) as shown:
    assert run({arguments!r}) == 0
assert "Usage" in shown.getvalue() or "fathom" in shown.getvalue()
"""


def checked(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CHECK.format(code=code)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "code",
    [
        "import fathom",
        "import fathom.errors, fathom.records, fathom.tally, fathom.profile, fathom.schema, fathom.run, fathom.ranks",
        "import fathom.behaviors, fathom.chat, fathom.progress, fathom.judge.refusal, fathom.judge.rows",
        "import fathom.cli, fathom.command.request",
        HELP.format(arguments=["--help"]),
        HELP.format(arguments=["audit", "--help"]),
        HELP.format(arguments=["--version"]),
    ],
)
def test_it_needs_no_torch(code: str) -> None:
    done = checked(code)
    assert done.returncode == 0, done.stderr


def test_the_check_can_fail() -> None:
    done = checked("import transformers")
    assert done.returncode == 1
    assert "imported: ['transformers']" in done.stderr


def test_help_is_shown_within_half_a_second_of_processor_time() -> None:
    """The best of several, in processor time: other work on the machine says nothing about ours."""
    code = "import resource, sys\nfrom fathom.__main__ import run\nrun(['--help'])\n"
    code += "print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), file=sys.stderr)"
    spent = []
    for _ in range(5):
        begun = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        spent.append(float(done.stderr))
        if time.monotonic() - begun < 0.5:
            break
    assert min(spent) < 0.5
