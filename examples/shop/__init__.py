"""Two services and a relay: what a customer orders is billed once, whichever of the three processes dies when.

`ordering` writes an order and its message in one transaction of its PostgreSQL, `relay` carries the message to Kafka, and
`billing` writes the bill and the mark of the message in one transaction of another PostgreSQL. From the folder above `examples`:

    export ORDERING_DATABASE=postgresql+asyncpg://localhost/ordering BILLING_DATABASE=postgresql+asyncpg://localhost/billing
    export OUTBOX_URL=postgres://localhost/ordering KAFKA_URL=kafka://localhost:9092

    uvicorn examples.shop.ordering:web
    things-kit run examples.shop.relay:app
    things-kit run examples.shop.billing:app

    curl -X PUT localhost:8000/orders -d '{"id": "o-1", "customer": "ada", "cents": 1190}'
"""
