"""Times in the headers of an answer: Retry-After, and the receiver's clock next to ours."""

import email.utils

SKEW_SECONDS = 300  # the Standard Webhooks specification: a receiver refuses a larger difference


def retry_after_seconds(header: str, wall_ns: int, date: str = "") -> float | None:
    """Return the seconds to wait for `120` or an HTTP date; None if the value is unusable.

    A date counts from the answer's own `Date` header if it has one, else from `wall_ns`.
    """
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    moment = http_date_seconds(text)
    if moment is None:
        return None
    now = http_date_seconds(date.strip())
    return max(0.0, moment - (wall_ns / 1e9 if now is None else now))


def http_date_seconds(text: str) -> float | None:
    """Return seconds since 1970 of an HTTP date; None if it is not one."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def skew_seconds(date: str, wall_ns: int) -> int:
    """Return by how many seconds our clock is ahead of a `Date` header; 0 within the tolerance."""
    theirs = http_date_seconds(date.strip())
    skew = 0 if theirs is None else round(wall_ns / 1e9 - theirs)
    return skew if abs(skew) > SKEW_SECONDS else 0


def skew_hint(date: str, wall_ns: int) -> str:
    """Return a clause that compares both clocks; "" within the tolerance or without a date."""
    skew = skew_seconds(date, wall_ns)
    if not skew:
        return ""
    return f"our clock is {abs(skew)} s {'ahead of' if skew > 0 else 'behind'} the receiver's"
