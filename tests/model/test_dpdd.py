"""What the Data Products Definition Document (LSE-163, 3.3) asks of DIASource, DIAObject and DIAForcedSource.

DMTN-092 section 5 wants the DPDD's columns with units and descriptions; apdb.yaml spells them its own way.
"""

import pytest

from apflow.model import schema

BANDS = "ugrizy"
#: By table: the DPDD's names, and the columns of apdb.yaml that hold them.
DPDD = {
    "DiaSource": {
        "diaSourceId": ["diaSourceId"],
        "ccdVisitId": ["visit", "detector"],
        "diaObjectId": ["diaObjectId"],
        "ssObjectId": ["ssObjectId"],
        "parentDiaSourceId": ["parentDiaSourceId"],
        "midPointTai": ["midpointMjdTai"],
        "filterName": ["band"],
        "radec": ["ra", "dec"],
        "radecCov": ["raErr", "decErr", "ra_dec_Cov"],
        "xy": ["x", "y"],
        "xyCov": ["xErr", "yErr"],
        "apFlux": ["apFlux"],
        "apFluxErr": ["apFluxErr"],
        "SNR": ["snr"],
        "psFlux": ["psfFlux"],
        "psFluxErr": ["psfFluxErr"],
        "psLnL": ["psfLnL"],
        "psChi2": ["psfChi2"],
        "psN": ["psfNdata"],
        "trailFlux": ["trailFlux"],
        "trailRadec": ["trailRa", "trailDec"],
        "trailLength": ["trailLength"],
        "trailAngle": ["trailAngle"],
        "trailChi2": ["trailChi2"],
        "trailN": ["trailNdata"],
        "dipMeanFlux": ["dipoleMeanFlux"],
        "dipFluxDiff": ["dipoleFluxDiff"],
        "dipLength": ["dipoleLength"],
        "dipAngle": ["dipoleAngle"],
        "dipChi2": ["dipoleChi2"],
        "dipN": ["dipoleNdata"],
        "totFlux": ["scienceFlux"],
        "totFluxErr": ["scienceFluxErr"],
        "Ixx, Iyy, Ixy": ["ixx", "iyy", "ixy"],
        "IxxPSF, IyyPSF, IxyPSF": ["ixxPSF", "iyyPSF", "ixyPSF"],
        "extendedness": ["extendedness"],
        "spuriousness": ["reliability"],  # turned round: 1 is real
        "flags": ["pixelFlags", "psfFlux_flag", "centroid_flag", "shape_flag"],
    },
    "DiaObject": {
        "diaObjectId": ["diaObjectId"],
        "radec": ["ra", "dec"],
        "radecCov": ["raErr", "decErr", "ra_dec_Cov"],
        "psFluxMean": [f"{b}_psfFluxMean" for b in BANDS],
        "psFluxMeanErr": [f"{b}_psfFluxMeanErr" for b in BANDS],
        "psFluxSigma": [f"{b}_psfFluxSigma" for b in BANDS],
        "psFluxNdata": [f"{b}_psfFluxNdata" for b in BANDS],
        "fpFluxMean": [f"{b}_fpFluxMean" for b in BANDS],
        "fpFluxMeanErr": [f"{b}_fpFluxMeanErr" for b in BANDS],
        "validityStart, validityEnd": ["validityStartMjdTai", "validityEndMjdTai"],
    },
    "DiaObject_To_Object_Match": {
        "nearbyObj": ["diaObjectId", "objectId"],
        "nearbyObjDist": ["dist"],
        "nearbyObjLnP": ["lnP"],
    },
    "DiaForcedSource": {
        "diaForcedSourceId": ["diaForcedSourceId"],
        "ccdVisitId": ["visit", "detector"],
        "diaObjectId": ["diaObjectId"],
        "psFlux": ["psfFlux"],
        "psFluxErr": ["psfFluxErr"],
        "totFlux": ["scienceFlux"],
        "totFluxErr": ["scienceFluxErr"],
        "midPointTai": ["midpointMjdTai"],
    },
}
#: The DPDD has them, apdb.yaml has dropped them: proper motion and parallax, periodograms, radecTai.
DROPPED = ["radecTai", "pmRa", "parallax", "lcPeriodic", "lcNonPeriodic", "trailLnL", "dipLnL", "psFluxChi2"]


@pytest.mark.parametrize(("table", "name"), [(t, n) for t, names in DPDD.items() for n in names])
def test_every_dpdd_column_has_its_place(table: str, name: str) -> None:
    for column in DPDD[table][name]:
        assert schema.table(table).column(column).description


def test_fluxes_times_and_positions_have_units() -> None:
    units = {"psfFlux": "nJy", "midpointMjdTai": "d", "ra": "deg", "ra_dec_Cov": "deg**2", "x": "pixel"}
    assert {c: schema.table("DiaSource").column(c).unit for c in units} == units


def test_what_was_dropped_is_not_there_under_its_old_name() -> None:
    """Once apdb.yaml has one of them again, it belongs above."""
    names = {c for t in DPDD for c in schema.table(t).names}
    assert not names & set(DROPPED)
