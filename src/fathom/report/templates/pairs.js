/* Every pair of answers of two runs: the same behavior under the same attack, depth and draw. */

class PairBrowser extends Browser {
  constructor(data) {
    runs = data.runs;
    names = data.names;
    super(data.pairs, ["change", "attack", "depth", "category", "drawn"]);
  }

  key([first, second]) {
    const sample = runs[0].samples[first];
    const behavior = runs[0].behaviors[sample.behavior];
    const other = runs[1].samples[second];
    return {
      change: label(sample) === label(other) ? "same verdict" : `${label(sample).toLowerCase()} → ${label(other).toLowerCase()}`,
      attack: attackName(sample),
      depth: String(sample.depth),
      category: categoryName(behavior),
      drawn: drawnName(sample),
      search: [sample.id, other.id, behavior.id, ...behavior.messages.map((message) => message.content.slice(0, 20000))].join("\n").toLowerCase(),
    };
  }

  row([first, second]) {
    const samples = [runs[0].samples[first], runs[1].samples[second]];
    const behavior = runs[0].behaviors[samples[0].behavior];
    const marks = element("span", "change");
    marks.append(verdictMark(samples[0]), element("span", "arrow", "→"), verdictMark(samples[1]));
    return this.item("pair-" + samples[0].id, marks, named(behavior), settingOf(samples[0]), () => {
      const body = element("div", "body");
      const sides = element("div", "sides");
      samples.forEach((sample, i) => {
        const side = element("div", "side");
        side.append(answerBlock(visible(names[i]), sample), idsList(sample, runs[i].ids));
        sides.append(side);
      });
      body.append(...requestBlocks(behavior), sides);
      return body;
    });
  }
}

let runs = [];
let names = [];

unpacked("samples").then((data) => {
  new PairBrowser(data);
  root.dataset.samples = "ready";
});
