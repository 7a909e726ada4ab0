"""The labels of requests at work: what is known of one at once, and what the rules find in its text."""

from collections.abc import Mapping, Sequence

from poise.config import Settings
from poise.gateway.models.routing.conversations import Conversations
from poise.gateway.models.routing.labels import Claims, Labelled, label_of_request
from poise.gateway.models.routing.scan import scan
from poise.gateway.records.record import Origin
from poise.gateway.request.generate import Generate
from poise.gateway.request.labels import label_of
from poise.gateway.text.tokens import TextJobs


class Labelling:
    """Of one server. Its conversations are erased with their tenant."""

    def __init__(self, settings: Settings, jobs: TextJobs) -> None:
        self._settings, self._jobs = settings, jobs
        self.conversations = Conversations()

    def known(
        self, request: Generate, origin: Origin, names: Sequence[str], hits: Sequence[str] = (), *, is_sent: bool = True
    ) -> Labelled:
        """The label without a look at the text, and with what was found there. `names`: of the model, beside the one that the
        request has for it. Not `is_sent`: nothing is remembered of it."""
        settings, floor = self._settings, label_of(self._settings.tenant(origin.tenant).data_class)
        claims = Claims(origin.tenant, floor, origin.key_label, origin.claim)
        known = (self.conversations, settings.egress, settings.data_classes)
        return label_of_request(claims, request, hits, *known, names, is_sent=is_sent)

    async def read(self, request: Generate, origin: Origin, names: Sequence[str], *, is_sent: bool = True) -> Labelled:
        """The label with a look at all of the text. Raises ApiError where nobody can look at it now."""
        hits = await scan(self._jobs, origin.account or origin.tenant, request, self._settings.egress)
        return self.known(request, origin, names, hits, is_sent=is_sent)

    async def erase(self, tenant: str) -> Mapping[str, int]:
        """The labels of its conversations."""
        return await self.conversations.erase(tenant)
