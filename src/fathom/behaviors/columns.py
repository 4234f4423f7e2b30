"""The column names of the public data sets, and what each is to a row."""

__all__ = [
    "AFTER",
    "ANSWER",
    "BEFORE",
    "CATEGORY",
    "CONVERSATION",
    "ID",
    "REFUSAL",
    "REQUEST",
    "SYSTEM",
    "TARGET",
    "plain",
]

# Names in lower case without spaces, dashes and underscores; the first that a row fills counts. JailbreakBench's
# request is its Goal, and its Behavior a short title; HarmBench's request is its Behavior; StrongREJECT's is its
# forbidden_prompt. Alpaca's `input` is a request where nothing else is, and else what the request is about.
REQUEST = (
    "prompt",
    "goal",
    "question",
    "instruction",
    "request",
    "behavior",
    "forbiddenprompt",
    "query",
    "input",
)
CONVERSATION = ("messages", "conversations", "conversation")
ANSWER = ("harmfulresponse", "answer", "response", "referenceanswer", "completion", "output")
TARGET = ("target", "targetstr", "targetprefix")
REFUSAL = ("refusal", "refusalresponse", "saferesponse")
CATEGORY = ("category", "semanticcategory", "functionalcategory", "type")
ID = ("id", "behaviorid")
SYSTEM = ("system", "systemprompt")
# What a request is about: HarmBench's stands before it; those of Alpaca, Dolly and SQL's create-context after it.
BEFORE = "contextstring"
AFTER = ("input", "context")


def plain(name: str) -> str:
    """A column's name in lower case, without spaces, dashes and underscores."""
    return "".join(character for character in name.lower() if character not in " _-")
