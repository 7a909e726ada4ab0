"""Workloads as data: who sends what and when, read by the benchmark and by the simulator alike.

A scenario file names its clients; `Scenario.requests(seed)` turns it into one stream of requests per client instance.

1. A stream depends on the seed, the client's name and the instance number (and on the trace, if it follows one), and on nothing
   else. Adding a client to a scenario leaves the requests of the others as they were, and so does consuming the streams in
   another order.
2. Every request of a client costs the same number of draws, in the order: arrival, prompt, output, cancel, seed. How a client
   behaves (whether it leaves, when, with what kind of body) is drawn from a generator of its own.
3. No clock is read and nothing is sent here. Times are seconds from the start of the load; the reader waits.
4. A prompt is a row of segments, each with a seed for its contents: what is common to two prompts has equal seeds. A shared
   prefix is the same for all clients of all files; the turns of a conversation repeat the prompts and answers before them.
5. A file is read strictly: an unknown key, a wrong type or a value out of range is an `InputError` in one line."""
