"""Server-sent events."""

from pydantic import BaseModel


def event(name: str, data: BaseModel) -> bytes:
    """One server-sent event (WHATWG HTML, section 9.2): JSON on one line."""
    return f"event: {name}\ndata: {data.model_dump_json()}\n\n".encode()
