"""Label Studio's own validator takes the predictions of the endpoint whose address is the argument.

The labelling interface comes on standard input.
"""

import json
import sys
import urllib.request

from label_studio_sdk.label_interface import LabelInterface

config = sys.stdin.read()
tasks = [{"id": i, "data": {"photo": "https://img.example.org/a.jpg"}} for i in range(3)]
body = json.dumps({"tasks": tasks, "label_config": config, "project": "1"}).encode()
request = urllib.request.Request(
    f"{sys.argv[1]}/labelstudio/predict", body, {"Content-Type": "application/json"}
)
results = json.load(urllib.request.urlopen(request))["results"]
interface = LabelInterface(config)
assert len(results) == 3
for result in results:
    assert result["result"], result
    errors = interface.validate_prediction(
        {
            "model_version": result["model_version"],
            "score": result["score"],
            "result": result["result"],
        },
        return_errors=True,
    )
    assert not errors, errors
print(f"label studio: {len(results)} predictions of {len(results[0]['result'])} boxes are valid")
