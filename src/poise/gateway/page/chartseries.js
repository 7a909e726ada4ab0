// What each chart shows: from the samples of the history to named rows of numbers. Nothing here touches the page.

const CLASSES = ["interactive", "background"];
const MIB = 2 ** 20;

const byClass = (pick) => (samples) =>
  CLASSES.map((name) => ({ name, values: samples.map((sample) => pick(sample.classes[name])) }));

/** A row for each key that any sample has, in the order in which they first come. */
const byKey = (pick) => (samples) => {
  const picked = samples.map(pick);
  const names = [...new Set(picked.flatMap((values) => Object.keys(values ?? {})))];
  return names.map((name) => ({ name: name.replaceAll("_", " "), values: picked.map((values) => values?.[name] ?? 0) }));
};

const rows = (picks) => (samples) => Object.entries(picks).map(([name, pick]) => ({ name, values: samples.map(pick) }));

/** Without those that were never anything: a legend of zeros helps nobody. */
const happened = (series) => (samples) => series(samples).filter(({ values }) => values.some((value) => value > 0));

const inPools = (field) => (sample) => sample.pools.reduce((sum, pool) => sum + pool[field], 0);
const mib = (bytes) => (typeof bytes === "number" ? bytes / MIB : null);

export const SERIES = [
  { id: "ttft", title: "Time to first token, p95", unit: "ms", kind: "points", series: byClass(({ ttft_ms }) => ttft_ms?.p95 ?? null) },
  { id: "itl", title: "Between tokens, p99", unit: "ms", kind: "lines", series: byClass(({ itl_ms }) => itl_ms?.p99 ?? null) },
  {
    id: "tokens",
    title: "Tokens",
    unit: "tokens/s",
    kind: "lines",
    series: rows({ output: (sample) => sample.output_tokens_per_s, prompts: (sample) => sample.prompt_tokens_per_s }),
  },
  {
    id: "queue",
    title: "Running and waiting",
    unit: "choices",
    kind: "lines",
    series: (samples) => [
      ...byClass(({ running }) => running)(samples).map(({ name, values }) => ({ name: `${name} running`, values })),
      ...byClass(({ queued }) => queued)(samples).map(({ name, values }) => ({ name: `${name} waiting`, values })),
    ],
  },
  {
    id: "steps",
    title: "What a second goes to",
    unit: "% of the second",
    kind: "stack",
    range: [0, 100],
    series: byKey(({ steps }) =>
      steps && Object.fromEntries(Object.entries(steps.parts).map(([part, share]) => [part, 100 * share * steps.busy])),
    ),
  },
  {
    id: "limit",
    title: "What limits progress",
    unit: "% of the second",
    kind: "stack",
    range: [0, 100],
    series: happened(byKey(({ limited }) => Object.fromEntries(Object.entries(limited).map(([name, share]) => [name, 100 * share])))),
  },
  {
    id: "cells",
    title: "KV cells",
    unit: "cells",
    kind: "stack",
    series: rows({ used: inPools("cells_used"), warm: inPools("cells_warm") }),
  },
  {
    id: "memory",
    title: "Memory",
    unit: "MiB",
    kind: "lines",
    series: rows({
      engine: ({ memory }) => mib(memory.engine_rss_bytes),
      "engine, unaccounted": ({ memory }) => mib(memory.engine_unaccounted_bytes),
      gateway: ({ memory }) => mib(memory.gateway_rss_bytes),
    }),
  },
  {
    id: "store",
    title: "Host store",
    unit: "MiB",
    kind: "stack",
    series: byKey(({ store }) => store && Object.fromEntries(Object.entries(store.bytes_by_purpose).map(([name, n]) => [name, mib(n)]))),
  },
  { id: "preemptions", title: "Preemptions", unit: "each second", kind: "bars", series: happened(byKey(({ preemptions }) => preemptions)) },
  {
    id: "carried",
    title: "KV cells carried",
    unit: "MiB/s",
    kind: "lines",
    series: rows({ "into the store": ({ stored_bytes }) => mib(stored_bytes), "from the store": ({ loaded_bytes }) => mib(loaded_bytes) }),
  },
  { id: "refused", title: "Refused requests", unit: "each second", kind: "bars", series: happened(byKey(({ refused }) => refused)) },
  { id: "fairness", title: "Fairness among tenants (Jain's index)", unit: "1 is even", kind: "lines", range: [0, 1.05], series: byClass(({ jain }) => jain) },
];
