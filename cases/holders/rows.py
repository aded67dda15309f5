"""What a request has in hand, and leaves behind if somebody keeps it."""


def lines_of(number):
    lines = []
    for row in range(400):
        lines.append("row %d of request %d" % (row, number))
    return lines


class Rows:
    def __init__(self, number):
        self.lines = lines_of(number)
