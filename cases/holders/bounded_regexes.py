"""The regular expressions that re keeps compiled, until there are 512."""
import re


# expect: cache GET / at bounded_regexes.py:keep, held by module re → _cache: dict[, bound 17000000 bytes within 40 %
def keep(number):
    words = "|".join("word%dof%d" % (index, number) for index in range(400))
    re.match(words, "nothing")
