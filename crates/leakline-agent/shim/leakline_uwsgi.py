"""Turns each request that uWSGI serves into a `native.begin` and a `native.end`.

The agent executes this text after `leakline_shim.py`, in a namespace of its own that holds `native`. uWSGI is written in
C: it takes the application out of the module or the file that its options name, and calls it for ever after. So we are
there when that module has been executed. An application that is an object is then given a `__call__` of ours by its
class; a function is replaced in its module, before uWSGI takes it. Of several mounts uWSGI tells the last one only: what
a framework has made is known by its class, wherever it is mounted.

uWSGI swallows what goes wrong when it writes to a client, and asks for no more of the response.
"""

import sys
from posix import readlink

# The manner of a server that reads a response to its end unless the client has gone.
READS_TO_THE_END = 2


def values(*kinds):
    """The values of uWSGI's options of these kinds. Of one that was given several times uWSGI tells the last."""
    options = getattr(sys.modules.get("uwsgi"), "opt", {})
    return [value.decode() for value in map(options.get, kinds) if isinstance(value, bytes)]


def usual():
    """What the application is called where nothing else is said, and in a file always."""
    return (values("callable") or ["application"])[0]


def named():
    """The modules that the options name, each with a callable in it."""
    for text in values("module", "wsgi", "mount"):
        # "/mount=module:callable"
        module, _, name = text.rpartition("=")[2].partition(":")
        yield module, name or usual()


def announce(name):
    """Uses the options' module as soon as it is imported."""
    for module, application in named():
        if module == name:
            native.install({name: lambda module: observe(vars(module), application)})


def instrument_files(importlib):
    """A file is no module that a finder is asked for. It is executed by `PyImport_ExecCodeModule`, which has the new
    module completed by this function before, and then there is but one way to learn that the execution is over."""
    original = importlib._fix_up_module

    def _fix_up_module(namespace, name, *paths):
        original(namespace, name, *paths)
        if name.startswith("uwsgi_file_") and sys.getprofile() is None:
            sys.setprofile(watch)

    def watch(frame, event, argument):
        namespace = frame.f_globals
        if event == "return" and frame.f_code.co_name == "<module>":
            if str(namespace.get("__name__")).startswith("uwsgi_file_"):
                sys.setprofile(None)
                try:
                    observe(namespace, usual())
                except Exception:
                    native.failed()

    native.replace(importlib, "_fix_up_module", _fix_up_module)


def observe(namespace, name):
    """Sees to it that what uWSGI takes under this name shows us its requests."""
    native.name_server("uwsgi")
    if name.endswith("()"):
        make = namespace[name[:-2]]
        namespace[name[:-2]] = lambda: observed(make())
    else:
        namespace[name] = observed(namespace[name])


def observed(application):
    kind = type(application)
    call = kind.__call__
    served = native.served(lambda *arguments: whole(call(application, *arguments)), READS_TO_THE_END)

    def __call__(self, *arguments, **named):
        return served(*arguments) if self is application else call(self, *arguments, **named)

    __call__.__wrapped__ = call
    try:
        native.replace(kind, "__call__", __call__)
        return application
    except TypeError:
        # A function, or another type that can't be changed.
        return served


def instrument_framework(class_name):
    def instrument(module):
        native.name_server("uwsgi")
        kind = getattr(module, class_name)
        call = kind.__call__

        def __call__(self, environ, start_response):
            def application(*arguments):
                return whole(call(self, *arguments))

            return native.served(application, READS_TO_THE_END)(environ, start_response)

        __call__.__wrapped__ = call
        native.replace(kind, "__call__", __call__)

    return instrument


def whole(response):
    """uWSGI, and nobody else, sends bytes as they are, and doesn't iterate over them."""
    return [response] if isinstance(response, bytes) else response


def take_over(function):
    """Makes a function do as ours does, whoever holds it already: it is given code that calls ours, which calls a copy of
    it with the code that it had. False where it has more to it than code."""
    if function.__closure__ or function.__defaults__ or function.__kwdefaults__:
        return False
    copy = type(function)(function.__code__, function.__globals__, function.__name__)
    # Code comes last, and goes first when we withdraw: without the other it can't be called.
    native.replace(function, "__kwdefaults__", {"served": observed(copy)})
    native.replace(function, "__code__", stand_in.__code__)
    return True


def stand_in(*arguments, served):
    return served(*arguments)


# Where each keeps what serves as a WSGI application.
FRAMEWORKS = {
    "flask.app": "Flask",
    "django.core.handlers.wsgi": "WSGIHandler",
    "pyramid.router": "Router",
    "bottle": "Bottle",
    "falcon.app": "App",
}


def observe_loaded():
    """What uWSGI has taken already can be observed by its class, or by the code of a function. What a factory has made for
    it nobody else knows: a framework's application is known by its class, another is not."""
    modules = dict(named())
    for name, module in list(sys.modules.items()):
        application = usual() if name.startswith("uwsgi_file_") else modules.get(name)
        if application is not None:
            native.name_server("uwsgi")
            if application.endswith("()") and any(framework in sys.modules for framework in FRAMEWORKS):
                continue
            taken = vars(module).get(application)
            is_function = isinstance(taken, type(stand_in))
            if native.has_replaced(taken if is_function else type(taken)):
                continue
            if taken is None or not (take_over(taken) if is_function else observed(taken) is taken):
                native.failed()


def come(_module=None):
    native.announce.append(announce)
    instrument_files(sys.modules["_frozen_importlib_external"])
    native.install({module: instrument_framework(name) for module, name in FRAMEWORKS.items()})
    native.at_work(observe_loaded)


# The program of this name, or the module by which a Python becomes that program. Python may be in the midst of importing
# `os` when we come.
if "uwsgi" in readlink("/proc/self/exe").rpartition("/")[2]:
    come()
else:
    native.install({"pyuwsgi": come})
