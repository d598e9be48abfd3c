"""Lists of the API read to their end, each page once, and no gap passed over in silence."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from bulkfetch.errors import BadResponseError, GapError
from bulkfetch.models import PatientPage, Versioned, moment

BEGINNING = "1970-01-01T00:00:00.000Z"
# An account that is at work brings a few more at each question: those are for the next time.
SHORT_PAGES_AT_MOST = 100


async def scanned(
    ask: Callable[[str], Awaitable[list[Versioned]]], since: str, most: int, what: str
) -> AsyncIterator[tuple[list[Versioned], str]]:
    """Yield the pages of a scan, each with the time from which to go on.

    `since` is inclusive, so that the end of a page comes again in the next: the caller drops it by
    ID and version. A page with fewer than `most` is the last one that there is now.

    Raises:
        GapError: a page is full of records of one time: behind it there may be more of that time,
            which no question can reach.
        BadResponseError: the records are not in order.
    """
    short = 0
    while short < SHORT_PAGES_AT_MOST and (page := await ask(since)):
        times = [record.updated for record in page]
        if times != sorted(times) or times[-1] < moment(since):
            raise BadResponseError(
                f"the scan of {what} did not answer in order of time", retryable=False
            )
        if len(page) >= most and times[0] == times[-1]:
            raise GapError(
                f"the API has {most:,} or more {what} of one time ({page[-1].updated_at}), and a "
                "scan cannot reach those behind them: nothing was written. Make a manifest of all "
                "(without --since and --since-last), download it, then go on with --since a "
                "millisecond later and a new --cursor"
            )
        begun, since = since, page[-1].updated_at
        yield page, since
        if len(page) < most:
            short += 1
            if times[-1] == moment(begun):
                return


async def listed(
    ask: Callable[[str | None], Awaitable[PatientPage]], token: str | None
) -> AsyncIterator[PatientPage]:
    """Yield the pages of the listing, from the first or from a token's.

    Raises:
        GapError: the pages go round in a circle.
    """
    # Brent's way to find a circle: one token is remembered, a new one after 1, 2, 4, ... pages.
    remembered, steps, length = token, 0, 1
    while True:
        page = await ask(token)
        yield page
        token = page.next_page_token
        if token is None:
            return
        if token == remembered:
            raise GapError(
                "the API's list of patients goes round in a circle: nothing was written; run the "
                "same command again, or scan with --since 1970-01-01"
            )
        steps += 1
        if steps == length:
            remembered, steps, length = token, 0, 2 * length
