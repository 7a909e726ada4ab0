// What the server says of an answer's structure: which of its text is settled for good, and its headings.

const WIDE = /[\ud800-\udfff]/;

/** Follows the marks of one answer. The server counts characters; everything here counts as JavaScript strings do. */
export class Structure {
  /** Up to here the text is whole blocks (a list, a paragraph, ...) that have ended: nothing can change them any more. */
  settled = 0;
  /** {level, begin, end} of each heading; `end` is null while it is being written. */
  headings = [];
  #depth = 0;
  #count = 0;
  #wide = [];

  /** A piece of the answer, and the marks that came with it. */
  add(text, marks) {
    this.#measure(text);
    for (const mark of marks) {
      const index = this.#index(mark.offset);
      if (mark.event === "begin") this.#begin(mark, index);
      else this.#end(mark, index);
    }
  }

  #begin({ kind, level }, index) {
    this.#depth++;
    if (kind === "heading") this.headings.push({ level, begin: index, end: null });
  }

  #end({ kind }, index) {
    this.#depth--;
    if (kind === "heading") this.headings.at(-1).end = index;
    if (this.#depth === 0) this.settled = index;
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
