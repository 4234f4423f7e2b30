"""Refusals in other major languages: the speaker cannot or will not help, in so many words."""

# ruff: noqa: E501, RUF001 a language a line; letters of other scripts look like Latin ones

__all__ = ["REFUSALS"]

# Per language: literals of which every refusal holds one, and a pattern in the notation of `cues`.
REFUSALS: dict[str, tuple[tuple[str, ...], str]] = {
    "de": (
        ("ich ", "dabei"),
        r"\b(?:ich kann|kann ich|ich darf|darf ich|ich werde|werde ich)(?: \w+){0,3}?(?: ?,)?(?: leider)?"
        r"(?: \w+){0,2}? (?:nicht|keine)\b(?: \w+){0,5}? (?:helfen|unterstützen|beantworten|bereitstellen|geben|anbieten|weiterhelfen|behilflich|erfüllen)"
        r"|\bich bin nicht in der lage\b|\bdabei kann ich(?: \w+){0,3} nicht\b",
    ),
    "fr": (
        ("je ", "m'est"),
        r"\bje (?:ne |n')(?:peux|puis|suis|saurais|vais)(?: pas| malheureusement)*(?: \w+){0,2}? (?:vous |t'|te |en mesure|"
        r"aider|fournir|répondre|donner|autorisé|pouvoir|continuer|partager)|\bil ne m'est pas possible",
    ),
    "es": (
        ("no puedo", "no puedo", "no me es", "no estoy", "no podré"),
        r"\bno (?:puedo|podré|me es posible|estoy (?:autorizad|en condiciones|capacitad|programad)\w*)(?: \w+){0,2}? ?"
        r"(?:ayudar|asistir|proporcionar|ofrecer|responder|dar|compartir|cumplir|brindar|continuar)",
    ),
    "it": (
        ("non posso", "non sono", "non mi è"),
        r"\bnon (?:posso|sono in grado di|mi è possibile|sono autorizzat\w a)(?: \w+){0,1}? ?"
        r"(?:aiutar|assister|fornir|rispond|dar|offrir|condivid|soddisf|continuar)",
    ),
    "pt": (
        ("não ",),
        r"\bnão (?:posso|consigo|poderei|me é possível|estou autorizad\w a)(?: \w+){0,1}? ?"
        r"(?:ajudar|auxiliar|fornecer|responder|dar|oferecer|compartilhar|partilhar|atender|continuar)",
    ),
    "ru": (
        ("не могу", "не смогу", "не буду", "не имею"),
        r"(?:\bя (?:\w+ ){0,2})?не (?:могу|смогу|буду|имею права)(?: \w+){0,2}? ?"
        r"(?:помо|предостав|ответ|дать|выполн|обсужд|содейств|подел|продолж)",
    ),
    "zh": (
        ("我", "抱歉", "对不起"),
        r"(?:我|抱歉|对不起)[^。！？\n]{0,12}?(?:无法|不能|不可以|不会|沒辦法|没办法)[^。！？\n]{0,12}?(?:帮助|帮|提供|协助|回答|满足|幫|協助|讨论|分享|继续)",
    ),
    "ja": (
        ("申し訳", "できません", "できかねます", "お手伝い", "お答え"),
        r"(?:お手伝い|お答え|ご提供|提供|回答|支援|お応え|協力|共有)(?:する|は|を|に|することは|すること)?[^。\n]{0,12}?(?:できません|できかねます|いたしかねます|致しかねます)",
    ),
}
