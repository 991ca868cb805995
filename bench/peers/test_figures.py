"""`python3 -m unittest discover -s bench/peers`: what needs no peer and no data."""

import unittest

from figures import at_recall, median, percentile, ratios, recall, verdicts


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


if __name__ == "__main__":
    unittest.main()
