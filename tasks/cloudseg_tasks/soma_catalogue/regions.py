"""Names and sides of an atlas's regions, from the segment properties that Neuroglancer shows of it."""

from __future__ import annotations

import json

from cloudseg.errors import NotFoundError, VolumeFormatError
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.segment_properties import KEY

SIDES = ("left", "right", "center")


def region_names(atlas: Objects, uri: str) -> dict[int, tuple[str, str]]:
    """Return name and side of each region.

    Parameters
    ----------
    atlas, uri
        The folder of the volume.

    Returns
    -------
    The property ``label`` is the name; a tag ``left``, ``right`` or ``center`` the side (empty: none). Without
    properties, no region has a name, and its id must do.

    Raises
    ------
    VolumeFormatError
        If the properties are malformed.
    """
    try:
        properties = json.loads(atlas.get("info")).get("segment_properties", KEY)
        document = json.loads(atlas.get(f"{properties}/info"))["inline"]
    except NotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VolumeFormatError(
            f"the segment properties of the atlas {uri} are malformed ({type(error).__name__}: {error}); they must be "
            "what Neuroglancer reads: an inline list of ids with a property of type label"
        ) from error
    ids = [int(each) for each in document["ids"]]
    names, sides = [str(each) for each in ids], [""] * len(ids)
    for each in document["properties"]:
        if each["type"] == "label":
            names = list(each["values"])
        elif each["type"] == "tags":
            for row, tags in enumerate(each["values"]):
                sides[row] = next((each["tags"][t] for t in tags if each["tags"][t] in SIDES), "")
    return dict(zip(ids, zip(names, sides, strict=True), strict=True))
