"""A list that only grows: every request adds its users to a list that the module keeps for ever."""
from flask import Flask

from fetchuserdata import user_data

app = Flask(__name__)
users_list = []


@app.route("/")
def index():
    user_data(users_list)
    return "%d users\n" % len(users_list)
