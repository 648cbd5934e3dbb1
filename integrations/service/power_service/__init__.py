"""REST and WebSocket over power_manager: `power-service --db power_manager.db`.

errors     the root of the errors
settings   each setting once: option, variable, default, limits; and which combinations are refused
storage    the library behind one function, `Storage.call`, which runs it off the event loop
source     what the routes read from: a file or a fleet
problems   errors as RFC 9457 problem JSON with a stable code, the library's among them
tokens     bearer tokens: their file, grants, one-use tickets
queries    the parameters that a route knows; others are refused
auth       who may do what on which device
limits     token buckets
locks      locks on directories, between processes
guard      checks on every request and WebSocket: hosts, origins, sizes, times; log and metrics
compress   gzip for clients that accept it
models     records that are sent beside the library's
shapes     schemas of what is received
bodies     strict JSON and NDJSON into parameters of the library
charts     fewer points for charts, with every peak
hours      statistics of a window, and what devices used by hour
backup     a consistent copy of the database, as an answer and as a command
routes     a package: devices, readings, reports, about (the service itself), fleet, and the
           parameters that they share
presence   which devices and meters are new, changed or gone, as frames
watcher    what any process writes to the file, as changes and frames
clients    one connection to the stream, and its bounded queue
hub        the one poller, and the clients to which it hands frames
stream     the WebSocket
metrics    Prometheus
examples   the contract's examples
pages      pages that the service makes itself
docs       the contract as a page to read
dashboard  the built dashboard
billing    Stripe's webhooks, where they are configured
fleet_source, fleet_watcher   a fleet's engine, in place of a file
api        the routes as a FastAPI application, and what becomes of errors
openapi    the contract; `python3 -m power_service.openapi` writes it
app        all of it as one ASGI application
listener   accepts connections, counted from accept on
server     uvicorn with limits on times
demo       a file of made-up devices, with live readings
cli        `power-service` and its commands
"""

from power_manager import __version__

__all__ = ["__version__"]
