/* Every sample of a run. */

class SampleBrowser extends Browser {
  constructor(data) {
    behaviors = data.behaviors;
    ids = data.ids;
    super(data.samples, ["attack", "depth", "verdict", "category", "drawn"]);
  }

  key(sample) {
    const behavior = behaviors[sample.behavior];
    return {
      attack: attackName(sample),
      depth: String(sample.depth),
      verdict: label(sample),
      category: categoryName(behavior),
      drawn: drawnName(sample),
      search: [sample.id, behavior.id, ...behavior.messages.map((message) => message.content.slice(0, 20000))].join("\n").toLowerCase(),
    };
  }

  row(sample) {
    const behavior = behaviors[sample.behavior];
    const reason = sample.verdicts.length ? visible(sample.verdicts[0].reason).slice(0, 80) : "";
    return this.item("sample-" + sample.id, verdictMark(sample), named(behavior), [...settingOf(sample), reason], () => {
      const body = element("div", "body");
      body.append(...requestBlocks(behavior), answerBlock("Answer", sample), idsList(sample, ids));
      return body;
    });
  }
}

let behaviors = [];
let ids = [];

unpacked("samples").then((data) => {
  new SampleBrowser(data);
  root.dataset.samples = "ready";
});
