"""REST and WebSocket over power_manager: `power-service --db power_manager.db`.

settings   what the service is told, each once: option, variable, default, limits; and the binds it refuses
storage    the library behind one function, `Storage.call`: the only way of a blocking call off the event loop
problems   errors as RFC 9457 problem JSON with a stable code; the one place where library errors are mapped
tokens     bearer tokens: their file, grants, one-use tickets
auth       who may do what on which device
limits     token buckets
guard      what every request and WebSocket passes first: hosts, origins, sizes, times, headers, log, metrics
compress   gzip where the client takes it
models     what is sent that the library has no record for, and the schemas of what is received
bodies     strict JSON and NDJSON into parameters of the library
charts     downsampling that keeps extremes
hours      statistics of a window, and what devices used by hour
backup     a consistent copy of the database, as an answer and as a command
routes     the routes under /v1, /healthz, /readyz, /metrics
watcher    what any process writes to the file, as changes and frames
clients    one connection to the stream, and its bounded queue
hub        the one poller, and the clients that it hands frames to
stream     the WebSocket
metrics    Prometheus
openapi    the contract; `python -m power_service.openapi` writes it
pages      pages that the service makes itself
docs       the contract as a page to read
dashboard  the built dashboard, if it is there
billing    Stripe's webhooks, where they are configured
fleet      the answers of a fleet's engine, where one is configured
app        all of it as one ASGI application
listener   where connections come in: counted from accept on, with a time for their TLS handshake
server     uvicorn with limits of times
demo       a file of made-up devices, to which it goes on logging
cli        `power-service` and its commands
"""

__version__ = "1.0.0"
