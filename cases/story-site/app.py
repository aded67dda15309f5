"""A site that remembers what its queries find, after a story of 2008. Django's QuerySets read nothing until somebody asks
for their items, and whoever pickles one asks for all of them."""
import functools
import os

import django
from django.conf import settings
from django.core.cache import cache
from django.core.wsgi import get_wsgi_application
from django.db import models
from django.http import HttpResponse
from django.urls import path

import database

port = os.environ.get("DATABASE_PORT")
if port is not None:
    stories = {
        "ENGINE": "django.db.backends.mysql", "NAME": "site", "USER": "root", "HOST": "127.0.0.1", "PORT": port,
        "CONN_MAX_AGE": None,
    }
else:
    # Where no MariaDB can be installed.
    stories = {"ENGINE": "django.db.backends.sqlite3", "NAME": database.write_sqlite()}

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    CACHES={"default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": "cache"}},
    DATABASES={"default": stories},
    INSTALLED_APPS=[__name__],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a case",
)
django.setup()


class Story(models.Model):
    section = models.IntegerField()
    title = models.CharField(max_length=200)
    teaser = models.CharField(max_length=400)

    class Meta:
        db_table = "story"


def memoized(function):
    @functools.wraps(function)
    def remember(*arguments):
        key = "-".join([function.__name__, *map(str, arguments)])
        found = cache.get(key)
        if found is None:
            found = function(*arguments)
            cache.set(key, found, None)
        return found

    return remember


@memoized
def recent_stories(section):
    return Story.objects.filter(section=section).order_by("-id")


# expect: balloon GET /stories/<int:section> at app.py:memoized.<locals>.remember, while handler, 20000000 bytes read from the service by one request, usually less than 100000
def headline(request, section):
    return HttpResponse(recent_stories(section).filter(title__startswith="Story")[0].title)


urlpatterns = [path("stories/<int:section>", headline)]
application = get_wsgi_application()
