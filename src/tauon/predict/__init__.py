"""A trained model on new data: rows in, rows with predictions out; files of any size in bounded memory.

    from tauon.predict import predict_rows
    predict_rows("runs/loans", [{"age": 41, "town": "Bonn"}])      # [{"prediction": "yes", "probability_no": 0.12, ...}]

The preprocessing of the training data is replayed (`tauon.data.replay`), and the model runs as in evaluation: predictions of the test rows
give the metrics that `tauon evaluate` reports.
"""

from tauon.predict.engine import Predictor, predict_rows, predict_stream
from tauon.predict.files import Done, FileOptions, predict_file
from tauon.predict.load import Trained, open_trained

__all__ = ["Done", "FileOptions", "Predictor", "Trained", "open_trained", "predict_file", "predict_rows", "predict_stream"]
