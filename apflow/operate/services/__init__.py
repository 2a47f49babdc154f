"""Private servers for tests, benchmarks and developers: PostgreSQL, Kafka, a schema registry, InfluxDB, SLURM.

Each runs from a folder of its own as an ordinary user (but for SLURM where root
starts it) and listens on this machine alone; nothing of the system is touched.
The binaries are Debian's (`cluster/services/install.sh`), the Java archives
Maven Central's (`cluster/services/pom.xml`).
"""

from apflow.operate.services.influxdb import InfluxServer
from apflow.operate.services.kafka import KafkaBroker
from apflow.operate.services.postgres import PostgresServer
from apflow.operate.services.registry import SchemaRegistry
from apflow.operate.services.slurm import SlurmCluster

__all__ = ["InfluxServer", "KafkaBroker", "PostgresServer", "SchemaRegistry", "SlurmCluster"]
