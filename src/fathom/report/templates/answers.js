/* Answers of fine-tuned models. */

class AnswerBrowser extends Browser {
  constructor(answers) {
    super(answers, ["model", "depth", "attack", "verdict", "drawn"]);
  }

  key(answer) {
    return {
      model: visible(answer.model),
      depth: String(answer.step),
      attack: visible(answer.asked),
      verdict: visible(answer.verdict).toLowerCase(),
      drawn: drawnName(answer),
      search: [answer.behavior, answer.model, answer.reason].join("\n").toLowerCase(),
    };
  }

  row(answer) {
    const kind = visible(answer.verdict).toLowerCase();
    const mark = element("span", "verdict " + (["harmful", "safe", "undecided"].includes(kind) ? kind : ""), kind);
    const first = element("div", "first");
    first.append(element("b", "", visible(answer.behavior).slice(0, 120)));
    const score = answer.score === null ? "" : `score ${answer.score.toFixed(2)}`;
    const facts = [visible(answer.model), `step ${answer.step}`, `asked ${visible(answer.asked)}`, drawnName(answer), visible(answer.reason).slice(0, 80), score];
    return this.item("", mark, first, facts, () => {
      const body = element("div", "body");
      body.append(textBlock("Answer", [[answer.text, ""]]));
      return body;
    });
  }
}

unpacked("samples").then((answers) => {
  if (answers.length) new AnswerBrowser(answers);
  root.dataset.samples = "ready";
});
