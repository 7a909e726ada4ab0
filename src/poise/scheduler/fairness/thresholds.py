"""How much of something shared one may take: a share of what is still free, so that there is always room for the next one.

After the dynamic thresholds of shared-memory switches (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory
packet switches", IEEE/ACM Transactions on Networking 6(2), 1998): with a share of 1 a lone holder gets half, two get a third
each, n get 1/(n+1) each, and 1/(n+1) stays free. Nobody has to be counted for that: what is free says how many there are."""


def may_take(amount: int, *, held: int, used: int, total: int, share: float = 1.0, least: int = 0) -> bool:
    """Whether who holds `held` of it may take `amount` more.

    used     what all holders have together, `held` included
    total    all there is; it is never exceeded
    share    what a holder may have, in what is free without its own part. Larger: less is left for the next one
    least    what a holder may have whatever the others have taken, as long as there is any left"""
    if used + amount > total:
        return False
    # Of `free + held` the holder may have share / (1 + share): where it has that much, it has `share` times what is free.
    return held + amount <= max(least, share / (1 + share) * (total - used + held))
