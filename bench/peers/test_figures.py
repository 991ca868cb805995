"""`python3 -m unittest discover -s bench/peers`: what needs no peer and no data."""

import json
import unittest

from figures import at_recall, filtered, median, percentile, ranking_all, ratios, recall, verdicts


class Figures(unittest.TestCase):
    def test_percentiles_are_nearest_ranks(self):
        values = list(range(200, 0, -1))
        self.assertEqual(percentile(values, 99), 198)
        self.assertEqual(percentile(values, 5), 10)
        self.assertEqual(percentile([7], 1), 7)
        self.assertEqual(median([3, 1, 2]), 2)

    def test_recall_has_a_mean_and_a_low_tail(self):
        found = [[1, 2, 9]] * 19 + [[8, 9]]
        of_two = recall(found, [[2, 1, 3]] * 20, 2)
        self.assertEqual(of_two, {"mean": 0.95, "p5": 0.0})
        self.assertEqual(recall(found, [[2, 1, 3]] * 20, 1)["mean"], 0.0)

    def test_between_points_the_logarithm_is_straight(self):
        points = [(0.90, 1_000.0), (0.98, 10.0)]
        self.assertAlmostEqual(at_recall(points, 0.94), 100.0)
        self.assertEqual(at_recall(points, 0.5), 1_000.0)
        self.assertIsNone(at_recall(points, 0.99))
        self.assertIsNone(at_recall([], 0.9))

    def test_a_recall_out_of_reach_takes_the_last_point_and_says_so(self):
        ours = [(0.94, 900.0), (0.995, 300.0)]
        theirs = [(0.90, 200.0), (0.97, 100.0)]
        values, notes = ratios("wink", "peer", ours, theirs, 2.0, 5.0)
        self.assertEqual(set(values), {
            "wink.qps_ratio_peer_r095",
            "wink.qps_ratio_peer_r099",
            "wink.build_ratio_peer",
        })
        self.assertEqual(values["wink.build_ratio_peer"], 0.4)
        at_099 = round(at_recall(ours, 0.99) / 100.0, 3)
        self.assertEqual(values["wink.qps_ratio_peer_r099"], at_099)
        self.assertEqual(len(notes), 1)
        self.assertIn("peer never reaches 0.99", notes[0])
        self.assertIn("0.9700", notes[0])

    def test_goals_bind_who_takes_writes_and_the_static_one(self):
        values = {
            "a.qps_ratio_symphonyqg_r095": 1.2,
            "a.qps_ratio_hnswlib_r099": 1.9,
            "a.qps_ratio_faiss_hnsw_r099": 1.0,
            "a.build_ratio_hnswlib": 0.4,
            "a.build_ratio_usearch": 3.0,
        }
        said = verdicts(values, {"hnswlib", "usearch"})
        self.assertEqual([line.split()[-1] for line in said], ["met", "missed", "met"])
        self.assertFalse(any("faiss" in line for line in said))

    def test_filtered_rows_are_kept_by_kind_from_the_widest_on(self):
        rows = [("near", 50, 3.0), ("near", 0.5, 90.0), ("near", 5, 20.0), ("far", 5, 30.0)]
        of_rows = [
            json.dumps({"filter": kind, "percent": percent, "qps_cpu_ranking_all": qps})
            for kind, percent, qps in [*rows, ("side", 5, 22.0)]
        ]
        whole, kinds = filtered("\n".join(['{"recall": 0.97}', *of_rows]) + "\n")
        self.assertEqual(whole, {"recall": 0.97})
        self.assertEqual([row["percent"] for row in kinds["near"]], [50, 5, 0.5])
        self.assertEqual(len(kinds["far"]), 1)
        self.assertEqual(ranking_all(kinds), [(50, 3.0), (5, 22.0), (0.5, 90.0)])


if __name__ == "__main__":
    unittest.main()
