// The structure of an answer, from the marks that the server sends with its text: blocks, and what they hold.

const WIDE = /[\ud800-\udfff]/;

/** Follows the marks of one answer. The server counts characters; everything here counts as JavaScript strings do. */
export class Structure {
  /**
   * {kind, begin, end, inner, level, ordered, language} of each block that is in no other, in their order. `end` is null while
   * it is being written; one that has ended never changes. `inner` are the blocks in it.
   */
  blocks = [];
  /** Those of the blocks that are headings. */
  headings = [];
  /** Where the last block began, whatever it is in. */
  begun = -1;
  #open = [];
  #count = 0;
  #wide = [];

  /** A piece of the answer, and the marks that came with it. */
  add(text, marks) {
    this.#measure(text);
    for (const { kind, event, offset, ...known } of marks) {
      if (kind === "sentence") continue;
      if (event === "begin") this.#begin({ kind, begin: this.#index(offset), end: null, inner: [], ...known });
      else this.#open.pop().end = this.#index(offset);
    }
  }

  #begin(block) {
    (this.#open.at(-1)?.inner ?? this.blocks).push(block);
    this.#open.push(block);
    this.begun = block.begin;
    if (block.kind === "heading") this.headings.push(block);
  }

  /** Notes which characters take two places in a string. */
  #measure(text) {
    if (!WIDE.test(text)) {
      this.#count += text.length;
      return;
    }
    for (const character of text) {
      if (character.length === 2) this.#wide.push(this.#count);
      this.#count++;
    }
  }

  #index(offset) {
    let low = 0;
    let high = this.#wide.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#wide[middle] < offset) low = middle + 1;
      else high = middle;
    }
    return offset + low;
  }
}
