"""Cyclic garbage: each request leaves a small graph of cycles that only the collector can free, in a sawtooth."""
# expect: none
from flask import Flask

app = Flask(__name__)


class Node:
    def __init__(self, parent):
        self.parent = parent
        self.children = []
        self.text = "node of %x" % id(parent)


def tree(depth, parent=None):
    node = Node(parent)
    if depth:
        node.children = [tree(depth - 1, node), tree(depth - 1, node)]
    return node


@app.route("/tree")
def show():
    return "%d children\n" % len(tree(5).children)
