"""A shop of Django REST framework, in one file, that keeps something for each request."""

import sys

from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__, SECRET_KEY="of a test", INSTALLED_APPS=["rest_framework"],
    REST_FRAMEWORK={"DEFAULT_AUTHENTICATION_CLASSES": [], "UNAUTHENTICATED_USER": None},
)

from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import include, path
from rest_framework.decorators import api_view
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.viewsets import ViewSet

kept = []
application = get_wsgi_application()


class Orders(ViewSet):
    def retrieve(self, request, pk):
        kept.append(b"x" * 250_000)
        return Response({"sold": pk})


@api_view(["GET"])
def lend(request, number):
    kept.append(b"x" * 240_000)
    return Response({"lent": number})


@api_view(["GET"])
def broken(request):
    raise RuntimeError("this page never works")


def endless(request):
    def pieces():
        while True:
            yield b"x" * 65_536

    return StreamingHttpResponse(pieces())


def large(request):
    return HttpResponse(b"x" * 30_000_000)


router = SimpleRouter()
router.register("orders", Orders, basename="order")
urlpatterns = [
    path("api/", include(router.urls)),
    path("lend/<int:number>", lend),
    path("broken", broken),
    path("endless", endless),
    path("large", large),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
