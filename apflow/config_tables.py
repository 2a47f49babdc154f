"""The tables of the configuration: frozen dataclasses with their defaults and the reasons."""

from __future__ import annotations

from dataclasses import dataclass

from apflow.errors import BadRequest


@dataclass(frozen=True)
class Timing:
    """Waits and deadlines, seconds."""

    image_timeout_s: float = 120.0  # DMTN-092 section 4
    order_timeout_s: float = 45.0  # longest wait for earlier visits on the same sky
    gather_after_s: float = 5.0  # a batch closes this long after its first detector


@dataclass(frozen=True)
class Calibrate:
    """Star selection, PSF, astrometry and photometry."""

    min_stars: int = 10  # fewer usable stars end the detector as bad_data
    star_snr: float = 20.0
    psf_order: int = 1
    match_radius_arcsec: float = 5.0  # pointing errors reach 2" (LDM-151)


@dataclass(frozen=True)
class Signature:
    """Instrument signature removal."""

    crosstalk: bool = True  # by the camera's matrix, where it has one
    linearity: bool = True  # by the camera's table, where it has one


@dataclass(frozen=True)
class Subtract:
    """Template subtraction."""

    method: str = "alard-lupton"  # or "zogy"
    convolve: str = "auto"  # the sharper image; or "template" or "science"
    kernel_order: int | None = None  # None: 1, and 2 above about 150 good stamps
    background_order: int = 2
    decorrelate: bool = True  # after DMTN-021; the difference then has a PSF of its own
    min_coverage: float = 0.2  # of the detector's good pixels
    # A difference with more ends its detector as bad_data; 0: never. Good pairs, simulated and real, leave 0.01 of the
    # power of bright stars at most and reject a quarter of their stamps; images that are 4 px apart leave
    # 0.15, those of different fields all.
    max_residual_power: float = 0.05
    max_bad_stamps: float = 0.75  # part of the stamps that were rejected


@dataclass(frozen=True)
class Detect:
    """Detection on the matched-filtered difference."""

    threshold: float = 5.0  # sigma, both signs
    max_sources: int = 20_000


@dataclass(frozen=True)
class Reliability:
    """Real or bogus."""

    model: str = ""  # file of weights; empty: the model that comes with apflow


@dataclass(frozen=True)
class Injection:
    """Fakes in the science images; they reach the database, flagged, and never an alert."""

    per_ccd: int = 0
    mag_min: float = 18.0
    mag_max: float = 25.0
    seed: int = 1
    catalog: str = ""  # Parquet file of fakes to inject instead: ra, dec (degrees), mag (AB)

    def __post_init__(self) -> None:
        if self.per_ccd < 0:
            raise BadRequest(f"configuration key injection.per_ccd is {self.per_ccd}; accepted: 0 or more")
        if not self.mag_min <= self.mag_max:
            raise BadRequest(
                f"configuration key injection.mag_min is {self.mag_min}; accepted: at most mag_max, {self.mag_max}"
            )
        if self.seed < 0:
            raise BadRequest(f"configuration key injection.seed is {self.seed}; accepted: 0 or more")


@dataclass(frozen=True)
class SolarSystem:
    """Predicted positions of Solar System objects, beside the ss_objects tables of the Butler."""

    service: str = ""  # URL that is asked for what is in a detector's field; empty: nobody is. See io.ephemerides
    timeout_s: float = 5.0  # a later answer is not waited for

    def __post_init__(self) -> None:
        if self.service and not self.service.startswith(("http://", "https://")):
            raise BadRequest(f"configuration key solar_system.service is {self.service!r}; accepted: http(s)://...")
        if not self.timeout_s > 0:
            raise BadRequest(f"configuration key solar_system.timeout_s is {self.timeout_s}; accepted: above 0")


@dataclass(frozen=True)
class Associate:
    """Association with DiaObjects."""

    radius_arcsec: float = 1.0
    position_floor_arcsec: float = 0.05
    margin_arcsec: float = 20.0
    history_days: float = 365.0
    max_new_objects: int = 1000  # a detector that would make more is refused
    forced_min_sources: int = 1  # DiaObjects with fewer DiaSources are not forced
    forced_min_reliability: float = 0.0  # nor those whose best DiaSource is less reliable than this


@dataclass(frozen=True)
class Alerts:
    """Alert packets."""

    schema_version: str = "11.1"
    cutout_px: int = 30
    cutout_max_px: int = 102
    nan_for_null: bool = False  # unknown floats as NaN, as Rubin's production has them, instead of null


@dataclass(frozen=True)
class Kafka:
    """Where alerts are sent; nowhere while `bootstrap` is empty.

    Passwords are not kept here: `password_file` and `registry_password_file`
    hold one each in their first line.
    """

    bootstrap: str = ""  # host:port, comma separated; "embedded" starts librdkafka's mock cluster
    topic: str = "alerts"
    registry: str = ""  # URL of a Confluent-compatible schema registry
    registry_username: str = ""
    registry_password_file: str = ""
    transactional_id: str = ""  # exactly once, where the broker offers transactions
    delivery_timeout_s: float = 30.0  # alerts not acknowledged by then wait in the outbox
    max_message_bytes: int = 1_000_000  # longer histories are trimmed to fit
    late_after_s: float = 60.0  # alerts sent later than this after the end of readout bear the late flag
    security_protocol: str = "PLAINTEXT"  # SSL, SASL_PLAINTEXT or SASL_SSL
    sasl_mechanism: str = "SCRAM-SHA-512"
    username: str = ""
    password_file: str = ""
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""


@dataclass(frozen=True)
class Inputs:
    """What is kept of calibs, templates and reference stars, so that the next visit need not fetch them."""

    memory_mib: float = 64.0  # in each worker's memory, decoded; 0: nothing. A full CCD needs 800
    fast_mib: float = 50_000.0  # in the repository's fast store, on each machine; 0: nothing new


@dataclass(frozen=True)
class Invocation:
    """How visits are announced (DMTN-092 section 2), and what is made of it."""

    rules: str = ""  # TOML file of rules; empty: every science visit and calibration is processed
    pointing_tolerance_deg: float = 0.5  # an image further from what was announced makes the visit begin anew
    angle_tolerance_deg: float = 1.0  # the same for the sky angle
    max_age_s: float = 3600.0  # announcements older than this are dropped
    header_grace_s: float = 1.0  # an image that nothing announced waits this long for a late announcement
    group_id: str = "apflow-listen"  # Kafka consumer group
    next_visit_topic: str = "lsst.sal.ScriptQueue.logevent_nextVisit"
    cancel_topic: str = "lsst.sal.ScriptQueue.logevent_nextVisitCanceled"
    integration_topic: str = ""  # empty: lsst.sal.MTCamera.logevent_startIntegration, or CCCamera's for LSSTComCam


@dataclass(frozen=True)
class Calibration:
    """Raw calibration (DMTN-092 section 2.3)."""

    ranges: str = ""  # TOML file of Acceptable, Warning and Alert; empty: those that come with apflow


@dataclass(frozen=True)
class Sasquatch:
    """Where metrics are sent; nowhere while `url` is empty."""

    url: str = ""  # of Sasquatch's REST proxy
    namespace: str = "lsst.prompt"
    token_file: str = ""  # holds the Bearer token in its first line
    timeout_s: float = 10.0  # of one request
    spool_mib: float = 1000.0  # kept on disk while the service is away; the oldest give way


@dataclass(frozen=True)
class Fleet:
    """A visit among others, against the clock: what is done when there is less time than work."""

    latency_s: float = 60.0  # from the end of readout to the alerts (LSE-61)
    shed_after_s: float = 0.0  # so late a detector leaves forced photometry and difference image undone; 0: never
    rerun_after_s: float = 40.0  # a detector that a worker has had for so long is begun on an idle one as well
    fuse: bool = True  # from its image on a detector is one Dask task; false: a task for each step


@dataclass(frozen=True)
class Night:
    """Records, report and supervision of a night."""

    ranges: str = ""  # TOML file of Acceptable, Warning and Alert by metric; empty: those that come with apflow
    log_format: str = "text"  # of the night's log files: text or json
    catch_up_after_s: float = 600.0  # missed detectors are drained when no visit came for this long
