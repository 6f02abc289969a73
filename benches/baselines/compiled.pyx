# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The codec in Cython."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy

ctypedef unsigned long long u64

cdef u64 MAX = (1ULL << 62) - 1


cdef class Capsule:
    """A whole capsule."""

    cdef readonly u64 kind
    cdef readonly bytes value

    def __init__(self, u64 kind, bytes value):
        self.kind = kind
        self.value = value


cdef class CapsuleHeader:
    """The header of a capsule whose value comes in parts."""

    cdef readonly u64 kind
    cdef readonly u64 length

    def __init__(self, u64 kind, u64 length):
        self.kind = kind
        self.length = length


cdef class CapsuleValue:
    """A part of the value of the capsule whose header came before."""

    cdef readonly bytes data
    cdef readonly u64 remaining

    def __init__(self, bytes data, u64 remaining):
        self.data = data
        self.remaining = remaining


cdef inline Capsule capsule(u64 kind, bytes value):
    cdef Capsule made = Capsule.__new__(Capsule)
    made.kind = kind
    made.value = value
    return made


cdef inline int varint_length(u64 value) noexcept nogil:
    if value < 1ULL << 6:
        return 1
    if value < 1ULL << 14:
        return 2
    if value < 1ULL << 30:
        return 4
    return 8


cdef inline int put(u64 value, unsigned char *out) noexcept nogil:
    cdef int length = varint_length(value)
    cdef int at
    for at in range(length):
        out[at] = <unsigned char>(value >> (8 * (length - 1 - at)))
    if length == 2:
        out[0] |= 0x40
    elif length == 4:
        out[0] |= 0x80
    elif length == 8:
        out[0] |= 0xC0
    return length


cdef inline int get(const unsigned char *data, Py_ssize_t size, u64 *value) noexcept nogil:
    """The bytes that the integer took; 0 = more are needed."""
    cdef int length, at
    cdef u64 number
    if size < 1:
        return 0
    length = 1 << (data[0] >> 6)
    if size < length:
        return 0
    number = data[0] & 0x3F
    for at in range(1, length):
        number = (number << 8) | data[at]
    value[0] = number
    return length


cdef inline u64 checked(object value) except? 0xFFFFFFFFFFFFFFFF:
    if value < 0 or value > MAX:
        raise ValueError("value must be from 0 to 2**62 - 1")
    return value


def encode_varint(value):
    """Encodes an integer in its shortest form (RFC 9000 §16)."""
    cdef unsigned char out[8]
    cdef int length = put(checked(value), out)
    return PyBytes_FromStringAndSize(<char *>out, length)


def decode_varint(const unsigned char[:] data, Py_ssize_t offset=0):
    """Decodes the integer at `offset`: (value, bytes it took), or None when more bytes are needed."""
    cdef u64 value
    cdef int length
    if offset < 0 or offset >= data.shape[0]:
        return None
    length = get(&data[offset], data.shape[0] - offset, &value)
    if length == 0:
        return None
    return value, length


def encode_capsule_header(kind, length):
    """Encodes the header of a capsule whose value follows separately."""
    cdef unsigned char out[16]
    cdef int used = put(checked(kind), out)
    used += put(checked(length), out + used)
    return PyBytes_FromStringAndSize(<char *>out, used)


def encode_capsule(kind, const unsigned char[:] value=b""):
    """Encodes a whole capsule (RFC 9297 §3.2)."""
    cdef unsigned char header[16]
    cdef Py_ssize_t size = value.shape[0]
    cdef int used = put(checked(kind), header)
    cdef bytes whole
    used += put(size, header + used)
    whole = PyBytes_FromStringAndSize(NULL, used + size)
    memcpy(PyBytes_AS_STRING(whole), header, used)
    if size:
        memcpy(PyBytes_AS_STRING(whole) + used, &value[0], size)
    return whole


cdef class CapsuleDecoder:
    """An incremental decoder: capsules of up to `max_whole` bytes come whole, longer ones in parts."""

    cdef u64 whole
    cdef u64 remaining
    cdef bytes held

    def __init__(self, u64 max_whole=65536):
        self.whole = max_whole
        self.remaining = 0
        self.held = b""

    def feed(self, data):
        """What the bytes complete, in order."""
        cdef bytes joined
        cdef const unsigned char[:] view
        if self.held:
            joined = self.held + bytes(data)
            self.held = b""
            view = joined
        else:
            view = data
        if view.shape[0] == 0:
            return []
        return self.run(&view[0], view.shape[0])

    cdef list run(self, const unsigned char *data, Py_ssize_t end):
        cdef list events = []
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t value
        cdef u64 kind, length, taken
        cdef int first, second
        while at < end:
            if self.remaining:
                taken = min(self.remaining, <u64>(end - at))
                self.remaining -= taken
                events.append(CapsuleValue(PyBytes_FromStringAndSize(<char *>(data + at), taken), self.remaining))
                at += taken
                continue
            first = get(data + at, end - at, &kind)
            if first == 0:
                break
            second = get(data + at + first, end - at - first, &length)
            if second == 0:
                break
            value = at + first + second
            if length <= self.whole:
                if length > <u64>(end - value):
                    break
                events.append(capsule(kind, PyBytes_FromStringAndSize(<char *>(data + value), length)))
                at = value + length
            else:
                events.append(CapsuleHeader(kind, length))
                self.remaining = length
                at = value
        if at < end:
            self.held = PyBytes_FromStringAndSize(<char *>(data + at), end - at)
        return events
