"""The pieces of a flat array that is divided between ranks, and whose they are."""

GRAIN = 16  # elements; pieces begin at multiples: at cache lines


def pieces(n: int, size: int) -> list[int]:
    """Return where the pieces of n elements begin, and n: size + 1 numbers."""
    return [min(n, -(-n * piece // (size * GRAIN)) * GRAIN) for piece in range(size)] + [n]


def piece_of(rank: int, size: int) -> int:
    """Return the piece that a rank has after recursive halving: its bits reversed."""
    piece, distance = 0, 1
    while distance < size:
        piece, distance = 2 * piece + bool(rank & distance), 2 * distance
    return piece
