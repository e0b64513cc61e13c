"""Keys of a GGUF for the tests, of the types that llama.cpp reads them with."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFWriter


def add_key(writer: "GGUFWriter", name: str, value: Any) -> None:
    """Add a key whose type is that of its value; whole numbers have 32 bits without a sign."""
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)
