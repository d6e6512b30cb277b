"""What differs between the projects of brokers: where each is, what runs it here, and how it is named in a cluster."""

from typing import Final, NamedTuple


class Place(NamedTuple):
    """How a broker is said in a project.

    `address` is its line in config.yaml, and `url` the same for the command line. `extra` brings its client. `service` is
    the end of compose.yaml: what the app is told there, and the broker, whose URL from outside is `here` where that is not
    `url`. `variable` and `port` tell a pod where the broker is, whose service is assumed to have the broker's name.
    """

    address: str
    url: str
    extra: str | None = None
    service: str = ""
    here: str | None = None
    variable: str | None = None
    port: int = 0


VOLUMES: Final = """\
volumes:
  data:
"""

KAFKA: Final = f"""\
    environment: {{ KAFKA_BROKERS: "broker:29092" }}
    depends_on: [broker]
  broker:
    image: apache/kafka:4.2.0
    ports: ["127.0.0.1:9092:9092"]
    environment:
      KAFKA_NODE_ID: 1
      KAFKA_PROCESS_ROLES: broker,controller
      KAFKA_LISTENERS: INSIDE://:29092,OUTSIDE://:9092,CONTROLLER://:9093
      KAFKA_ADVERTISED_LISTENERS: INSIDE://broker:29092,OUTSIDE://localhost:9092
      KAFKA_LISTENER_SECURITY_PROTOCOL_MAP: INSIDE:PLAINTEXT,OUTSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT
      KAFKA_INTER_BROKER_LISTENER_NAME: INSIDE
      KAFKA_CONTROLLER_LISTENER_NAMES: CONTROLLER
      KAFKA_CONTROLLER_QUORUM_VOTERS: 1@localhost:9093
      KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR: 1
      KAFKA_LOG_DIRS: /var/lib/kafka/data
    volumes: [data:/var/lib/kafka/data]
{VOLUMES}"""
NATS: Final = f"""\
    environment: {{ NATS_SERVERS: "broker:4222" }}
    depends_on: [broker]
  broker:
    image: nats:2
    command: [--jetstream, --store_dir, /data]
    ports: ["127.0.0.1:4222:4222"]
    volumes: [data:/data]
{VOLUMES}"""
POSTGRES: Final = f"""\
    environment: {{ POSTGRES_HOSTS: "broker:5432" }}
    depends_on: [broker]
  broker:
    image: postgres:17
    ports: ["127.0.0.1:5432:5432"]
    environment: {{ POSTGRES_USER: app, POSTGRES_HOST_AUTH_METHOD: trust }} # for this machine alone
    volumes: [data:/var/lib/postgresql/data]
{VOLUMES}"""
PUBSUB: Final = """\
    environment: { PUBSUB_ENDPOINT: "broker:8085" }
    depends_on: [broker]
  broker:
    image: gcr.io/google.com/cloudsdktool/google-cloud-cli:emulators
    command: gcloud beta emulators pubsub start --host-port=0.0.0.0:8085
    ports: ["127.0.0.1:8085:8085"]
"""
RABBITMQ: Final = f"""\
    environment: {{ RABBITMQ_HOSTS: "broker:5672" }}
    depends_on: [broker]
  broker:
    image: rabbitmq:4-management
    hostname: broker
    ports: ["127.0.0.1:5672:5672", "127.0.0.1:15672:15672"]
    volumes: [data:/var/lib/rabbitmq]
{VOLUMES}"""
REDIS: Final = f"""\
    environment: {{ REDIS_HOSTS: "broker:6379" }}
    depends_on: [broker]
  broker:
    image: redis:8
    command: [redis-server, --appendonly, "yes"]
    ports: ["127.0.0.1:6379:6379"]
    volumes: [data:/data]
{VOLUMES}"""
SQLITE: Final = f"""\
    environment: {{ SQLITE_PATH: /data/events.db }}
    volumes: [data:/data]
{VOLUMES}"""
SQS: Final = """\
    environment: { SQS_ENDPOINT: "http://broker:4566", AWS_ACCESS_KEY_ID: any, AWS_SECRET_ACCESS_KEY: any }
    depends_on: [broker]
  broker:
    image: localstack/localstack:4
    ports: ["127.0.0.1:4566:4566"]
    environment: { SERVICES: "sqs,sns" }
"""

BROKERS: Final = {
    "kafka": Place(
        "brokers: [localhost:9092]",
        "kafka://localhost:9092",
        "kafka",
        KAFKA,
        variable="KAFKA_BROKERS",
        port=9092,
    ),
    "nats": Place(
        "servers: [localhost:4222]",
        "nats://localhost:4222",
        "nats",
        NATS,
        variable="NATS_SERVERS",
        port=4222,
    ),
    "postgres": Place(
        "hosts: [localhost:5432]\n  database: app\n  username: app # the password: POSTGRES_PASSWORD_FILE",
        "postgres://app@localhost:5432/app",
        "postgres",
        POSTGRES,
        variable="POSTGRES_HOSTS",
        port=5432,
    ),
    "pubsub": Place(
        "project: my-project",
        "pubsub://my-project",
        "pubsub",
        PUBSUB,
        "pubsub://my-project?endpoint=localhost:8085",
    ),
    "rabbitmq": Place(
        "hosts: [localhost:5672]",
        "amqp://localhost:5672",
        "rabbitmq",
        RABBITMQ,
        variable="RABBITMQ_HOSTS",
        port=5672,
    ),
    "redis": Place(
        "hosts: [localhost:6379]",
        "redis://localhost:6379",
        "redis",
        REDIS,
        variable="REDIS_HOSTS",
        port=6379,
    ),
    "servicebus": Place(
        "namespace: my-namespace.servicebus.windows.net",
        "servicebus://my-namespace.servicebus.windows.net",
        "servicebus",
    ),
    "sqlite": Place("path: events.db", "sqlite:///events.db", None, SQLITE),
    "sqs": Place(
        "region: us-east-1", "sqs://us-east-1", "sqs", SQS, "sqs://us-east-1?endpoint=http://localhost:4566"
    ),
}


def in_compose(broker: str) -> str:
    """A sentence for the readme: how commands reach the broker of compose.yaml; empty where they do as they stand."""
    place = BROKERS[broker]
    if broker == "sqlite":
        return (
            "\n\nThe file of `compose.yaml` is in a volume, so there the commands go into the container, as in\n"
            "`docker compose exec app things-kit topics sqlite:////data/events.db`."
        )
    return f'\n\nThe broker of `compose.yaml` is `"{place.here}"` from outside of it.' if place.here else ""


def in_cluster(broker: str) -> str:
    """What a container of the pod has beside its probes: where the broker is, or the volume of the file."""
    place = BROKERS[broker]
    if broker == "sqlite":
        return (
            "          env: [{ name: SQLITE_PATH, value: /data/events.db }]\n"
            "          volumeMounts: [{ name: data, mountPath: /data }]\n"
        )
    if place.variable is None:
        return ""
    return f'          env: [{{ name: {place.variable}, value: "{broker}:{place.port}" }}] # the service of the broker\n'


def replicas(broker: str) -> str:
    """How many pods there are: a file has one machine."""
    if broker == "sqlite":
        return "replicas: 1 # the file is of one machine\n  strategy: { type: Recreate }"
    return "replicas: 2 # the consumers of a group share the messages"


def storage(broker: str, name: str) -> tuple[str, str]:
    """The volumes of the pod, and the document for its claim."""
    if broker != "sqlite":
        return "", ""
    pod = (
        "      securityContext: { fsGroup: 1000 } # whose the volume is\n"
        "      volumes:\n"
        f"        - {{ name: data, persistentVolumeClaim: {{ claimName: {name} }} }}\n"
    )
    claim = (
        "---\napiVersion: v1\nkind: PersistentVolumeClaim\n"
        f"metadata:\n  name: {name}\nspec:\n"
        "  accessModes: [ReadWriteOnce]\n  resources: { requests: { storage: 1Gi } }\n"
    )
    return pod, claim
