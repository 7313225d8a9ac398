"""A writer of ONNX files, enough for the small networks of the tests: protobuf by hand, since no library is at hand."""

import struct

import numpy as np

FLOAT, INT64 = 1, 7


def varint(number):
    number &= 2**64 - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def field(number, value):
    """One protobuf field: whole numbers as varints, floats as 32 bits, text and messages by their length."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*fields):
    return b"".join(field(number, value) for number, value in fields)


def tensor(name, array):
    array = np.ascontiguousarray(array, np.int64 if np.asarray(array).dtype.kind == "i" else np.float32)
    kind = INT64 if array.dtype == np.int64 else FLOAT
    return message(*((1, side) for side in array.shape), (2, kind), (8, name), (9, array.tobytes()))


def attribute(name, value):
    if isinstance(value, (list, tuple)):
        return message((1, name), *((8, each) for each in value), (20, 7))
    return message((1, name), (3, value), (20, 2))


def node(kind, inputs, output, **attributes):
    said = [(5, attribute(name, value)) for name, value in attributes.items()]
    return message(*((1, name) for name in inputs), (2, output), (3, f"make {output}"), (4, kind), *said)


def values(name, shape):
    dimensions = message(*((1, message((1, side))) for side in shape))
    return message((1, name), (2, message((1, message((1, FLOAT), (2, dimensions))))))


def network(nodes, constants, inputs, outputs):
    """The bytes of a file with these nodes; `inputs` and `outputs`: name -> shape."""
    graph = message(
        *((1, each) for each in nodes),
        (2, "graph"),
        *((5, tensor(name, array)) for name, array in constants.items()),
        *((11, values(name, shape)) for name, shape in inputs.items()),
        *((12, values(name, shape)) for name, shape in outputs.items()),
    )
    return message((1, 7), (2, "tests"), (7, graph), (8, message((1, ""), (2, 13))))
