// Numbers as people read them.

const counts = new Intl.NumberFormat("en");
const ordinalRules = new Intl.PluralRules("en", { type: "ordinal" });
const ORDINAL_ENDINGS = { one: "st", two: "nd", few: "rd", other: "th" };

export const UNKNOWN = "–";

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export function count(value) {
  return isNumber(value) ? counts.format(Math.round(value)) : UNKNOWN;
}

export function plural(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** A rate with as many digits as carry meaning: 7.3, 42. */
export function rate(value) {
  if (!isNumber(value)) return UNKNOWN;
  return value > 0 && value < 9.95 ? value.toFixed(1) : count(value);
}

export function duration(ms) {
  if (!isNumber(ms)) return UNKNOWN;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return parts(minutes, "min", seconds % 60, "s");
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return parts(hours, "h", minutes % 60, "min");
  return parts(Math.floor(hours / 24), "d", hours % 24, "h");
}

export function ordinal(position) {
  return counts.format(position) + ORDINAL_ENDINGS[ordinalRules.select(position)];
}

/** "Waiting, 3rd in line, about 1.2 s" from what the server said; it may have said less. */
export function waiting({ position, etaMs }) {
  const place = isNumber(position) && position > 0 ? `, ${ordinal(position)} in line` : "";
  const time = isNumber(etaMs) && etaMs > 0 ? `, about ${duration(etaMs)}` : "";
  return `Waiting${place}${time}`;
}

function parts(large, largeUnit, small, smallUnit) {
  return small ? `${large} ${largeUnit} ${small} ${smallUnit}` : `${large} ${largeUnit}`;
}
