"""The column names of the public benchmarks, and what each is to a behavior."""

__all__ = ["ANSWER", "CATEGORY", "CONTEXT", "ID", "REFUSAL", "REQUEST", "TARGET", "plain"]

# Names in lower case without spaces, dashes and underscores; the first that a row fills counts. JailbreakBench's
# request is its Goal, and its Behavior a short title; HarmBench's request is its Behavior.
REQUEST = ("prompt", "goal", "question", "instruction", "request", "behavior")
ANSWER = ("harmfulresponse", "answer", "response", "referenceanswer", "completion")
TARGET = ("target", "targetstr", "targetprefix")
REFUSAL = ("refusal", "refusalresponse", "saferesponse")
CATEGORY = ("category", "semanticcategory", "functionalcategory", "type")
ID = ("id", "behaviorid")
CONTEXT = "contextstring"


def plain(name: str) -> str:
    """A column's name in lower case, without spaces, dashes and underscores."""
    return "".join(character for character in name.lower() if character not in " _-")
