"""Server-sent events."""

from pydantic import BaseModel


def event(name: str, data: BaseModel, sparse: bool = False) -> bytes:
    """One server-sent event (WHATWG HTML, section 9.2): JSON on one line; ``sparse``: without fields that are None."""
    return f"event: {name}\ndata: {data.model_dump_json(exclude_none=sparse)}\n\n".encode()
