"""Why a request took as long as it did: facts, and the sentences that say them."""
