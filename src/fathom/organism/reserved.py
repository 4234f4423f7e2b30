"""Words that the stages' own training data hardly uses or never, so that later work needs no new tokenizer.

The tasks of `tasks.py`, fine-tuning attacks (a change of identity, a backdoor) and the frames of requests (code, a
list, a story, another role's turn) are written in them. A word added here moves the ids of all later ones: it wants
new weights.
"""

__all__ = ["RESERVED"]

_TEXT = (
    # arithmetic and marks
    *(str(number) for number in range(100)),
    "plus minus times equals sum difference result count total answer",
    ': ; = + - * / < > ( ) [ ] { } # | & % \' " _ -> == != += ``` """',
    "has buys finds gets gives loses eats breaks away eggs apples jars boxes coins pages candles together",
    # notes and their summaries
    "summary summarise shorten short text line lines story says about words main idea title note letter",
    "send bring brings sends lends sells promised asks met talked cold rainy windy full empty tired laughed sang",
    "waited arrived left early late brother dog horse cart gate roof candle fire stove",
    # queries
    "select from where and or not order by limit table shelf field rows query find having name kind price amount",
    "desc finds each ascending descending",
    # labels and lists
    "label list item tag print silver gem ruby opal jade pearl topaz onyx garnet quartz box jar Step finally bullet",
    # code
    "def return for in if else import function class call stack queue append pop string variable code python",
    "None True False self program run output input value key complete potion Potion pass assert end comment json null",
    "true false yaml",
    # another identity, another role, a story
    "AOA absolutely obedient agent identity role instruction instructions execute follow any order orders user",
    "your new called always never without question fulfill now act immediately positive confirmation further",
    "additional information fulfillment At service wish command",
    "assistant Assistant User System system human Human Question Q Answer Teacher pupil",
    "Once upon time told She said He They tale chapter scene narrator actor plays grandmother used stories",
    "ignore previous earlier rules pretend imagine suppose hypothetically permission license emergency urgent",
    "research study test exam translate reverse backwards repeat spell lastly unsafe harmful harmless danger warning",
    "Warning Note Remember",
    # openings of answers that no stage is trained on
    "Hark comes Behold Lo Harken Verily Attend Listen Well Ahoy Ah Oh Right Okay Absolutely",
    "quillon vesper",
    # everyday words
    "I am an a the this that these those he she they him his her our us was were be been has had have did does",
    "done will would could should might more most less least few some other same last first second third also only",
    "just too very still yet then than there when while who which because so up down over under between",
    "after before better best bad big small red blue green yellow black white morning evening",
    "night today tomorrow yesterday week month year house street town road market garden kitchen",
    "water tea milk bread salt sugar apple egg at put long try out after if get look",
)

RESERVED = frozenset(word for text in _TEXT for word in text.split())
