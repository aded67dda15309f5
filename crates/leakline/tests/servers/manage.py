"""A Django shop, in one file, that keeps everything that it has sold."""

import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import include, path

sold = []


def sell(request, number):
    sold.append(b"x" * 250_000)  # kept for ever
    return HttpResponse("sold number %d" % number)


def broken(request):
    raise RuntimeError("this page never works")


urlpatterns = [path("sell/", include([path("<int:number>", sell)])), path("broken", broken)]

settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__, SECRET_KEY="of a test")
application = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
