"""The two routes of `orders.py` by Django, whose articles come from sqlite by its ORM."""

import os

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, models
from django.http import HttpResponse, JsonResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.path.join(os.environ["HOME"], "orders.sqlite"),
            "CONN_MAX_AGE": None,
        }
    },
    ROOT_URLCONF=__name__,
)
django.setup()


class Article(models.Model):
    name = models.TextField()
    cents = models.IntegerField()

    class Meta:
        app_label = "orders"


with connection.schema_editor() as editor:
    editor.create_model(Article)
Article.objects.bulk_create(Article(name="Article %d" % number, cents=100 + number) for number in range(500))


def health(request):
    return HttpResponse("ok\n")


def order(request, number):
    lines = []
    articles = Article.objects.filter(id__gt=number * 7 % 470)[:30]
    for position, article in enumerate(articles):
        quantity = 1 + (number + position) % 5
        total = quantity * article.cents
        lines.append({"position": position, "article": article.name, "quantity": quantity, "total": total})
    return JsonResponse({"number": number, "lines": lines, "total": sum(line["total"] for line in lines)})


urlpatterns = [path("health", health), path("orders/<int:number>", order)]
app = get_wsgi_application()
