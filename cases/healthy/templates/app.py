"""Template and regular-expression caches: they fill while the first pages are shown and then stay as they are."""
# expect: none
import re

from flask import Flask, render_template_string

app = Flask(__name__)


@app.route("/page/<int:number>")
def page(number):
    source = "<h1>Page %d</h1>{%% for row in rows %%}<p>{{ row }}</p>{%% endfor %%}" % (number % 60)
    rows = ["%d-%d" % (number, row) for row in range(10)]
    matched = [row for row in rows if re.match(r"\d+-%d+" % (number % 200), row)]
    return render_template_string(source, rows=matched or rows)
