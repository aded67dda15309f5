"""Caches of their own for each thread: memory grows once a thread has served its first requests, and then stays."""
# expect: none
import threading

from flask import Flask

app = Flask(__name__)
local = threading.local()


def translations():
    if not hasattr(local, "translations"):
        local.translations = {"message %d" % number: "translated %d" % number for number in range(5000)}
    return local.translations


@app.route("/say/<int:number>")
def say(number):
    return translations()["message %d" % (number % 5000)]
